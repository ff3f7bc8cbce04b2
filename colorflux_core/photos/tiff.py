"""TIFF files: pictures of any layout and depth read with tifffile, and RGB ones written."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from itertools import islice
from typing import IO, Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from tifffile import TiffFile, TiffPage

from . import exif
from .decoded import Decoded, require_size
from .metadata import Reader, read_tiff
from .raster import Raster, raster_of

# It reports what it finds odd in a file to its logger, and without a handler to stderr.
logging.getLogger("tifffile").addHandler(logging.NullHandler())

MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")

_MOST_PAGES = 1000
_UINT, _FLOAT = 1, 3
_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB, _PALETTE, _CMYK, _YCBCR, _CFA = 0, 1, 2, 3, 5, 6, 32803
_CHANNELS = {_WHITE_IS_ZERO: 1, _BLACK_IS_ZERO: 1, _RGB: 3, _PALETTE: 1, _CMYK: 4, _YCBCR: 3}
_JPEG = 7
# CCITT faxes and old-style JPEG, which libtiff in Pillow reads best.
_PILLOWS_COMPRESSIONS = {2, 3, 4, 6}
_PILLOWS_PHOTOMETRICS = {8, 9, 10}  # CIELab
_ASSOCIATED, _STRAIGHT = 1, 2
_THUMBNAIL = 1 / 4
"""Of the area of another page of the same proportions: so small a first page is a thumbnail."""


def decode(file: BinaryIO, max_megapixels: float) -> Decoded:
    """The photo of a TIFF file: its first page that is neither a thumbnail nor a mask.

    Gray, RGB and CMYK of 1 to 64 bits, palettes, alpha. Depths other than 8 and 16 are scaled.
    """
    with TiffFile(file) as tiff:
        pages = _pages(tiff)
        page, others = _photo_page(pages)
        require_size(page.imagewidth, page.imagelength, max_megapixels)
        if page.imagedepth > 1 or page.samplesperpixel > 16:
            raise ValueError("a volume, or more than 16 channels")
        reader = Reader()
        metadata = read_tiff(reader, lambda: exif.read_tags(file, page.offset))
        remarks = list(reader.remarks)
        if others:
            remarks.append(f"{others} further page{'s' * (others > 1)} left out")
        orientation = reader.orientation
        if _is_for_pillow(page):
            raster = _decoded_by_pillow(file, pages.index(page))
            orientation = 1  # Pillow turns TIFF pictures itself.
        else:
            raster = _raster(page, remarks)
        profile = exif.read_tags(file, page.offset).main.get(exif.ICC_PROFILE)
        raster.profile = profile.data if profile else b""
        return Decoded(raster, orientation, metadata, remarks, "TIFF")


def _pages(tiff: TiffFile) -> list[TiffPage]:
    """The pages as far as they can be read, with what hangs below them."""
    pages: list[TiffPage] = []
    try:
        pages.extend(page for page in islice(tiff.pages, _MOST_PAGES) if isinstance(page, TiffPage))
    except (ValueError, OSError, LookupError, TypeError, ArithmeticError):
        if not pages:
            raise
    for page in pages[:1]:
        if page.pages is not None and _is_reduced(page):
            pages += [sub for sub in page.pages if isinstance(sub, TiffPage)]
    if not pages:
        raise UnidentifiedImageError("a TIFF file without a page")
    return pages


def _photo_page(pages: Sequence[TiffPage]) -> tuple[TiffPage, int]:
    """The page to read, and how many other full pages there are."""
    full = [page for page in pages if not _is_reduced(page)] or [max(pages, key=_area)]
    first = full[0]
    larger = [page for page in full if _is_thumbnail_of(first, page)]
    if larger:
        full = [page for page in full if page is not first]
        first = larger[0]
    return first, len(full) - 1


def _is_reduced(page: TiffPage) -> bool:
    subfile = page.tags.valueof(254, default=0)
    is_reduced = isinstance(subfile, int) and bool(subfile & 0b101)  # a thumbnail, or a mask
    return is_reduced or page.tags.valueof(255) == 2


def _area(page: TiffPage) -> int:
    return int(page.imagewidth * page.imagelength)


def _is_thumbnail_of(small: TiffPage, large: TiffPage) -> bool:
    proportions = [page.imagewidth / max(page.imagelength, 1) for page in (small, large)]
    alike = abs(proportions[0] / max(proportions[1], 1e-9) - 1) < 0.05
    return (
        alike
        and max(small.imagewidth, small.imagelength) <= 512
        and (_area(small) <= _THUMBNAIL * _area(large))
    )


def _is_for_pillow(page: TiffPage) -> bool:
    photometric, compression = page.photometric, page.compression
    return (
        compression in _PILLOWS_COMPRESSIONS
        or photometric in _PILLOWS_PHOTOMETRICS
        or (photometric == _YCBCR and compression != _JPEG)
    )


def _decoded_by_pillow(file: BinaryIO, number: int) -> Raster:
    file.seek(0)
    with Image.open(file, formats=["TIFF"]) as image:
        image.seek(number)
        image.load()
        return raster_of(image)


def _raster(page: TiffPage, remarks: list[str]) -> Raster:
    photometric = int(page.photometric)
    if photometric not in _CHANNELS:
        raise ValueError("camera raw data" if photometric == _CFA else "an unknown color model")
    if photometric == _CMYK and page.tags.valueof(332, default=1) != 1:
        raise ValueError("inks other than CMYK")
    channels = _CHANNELS[photometric]
    if page.samplesperpixel < channels:
        raise ValueError("a channel is missing")
    _require_complete(page)
    samples = _samples(page)
    alphas = [
        at
        for at, kind in enumerate(page.extrasamples, channels)
        if kind in (_ASSOCIATED, _STRAIGHT) and at < samples.shape[-1]
    ]
    unused = samples.shape[-1] - channels - len(alphas[:1])
    if unused > 0:
        remarks.append(f"{unused} extra channel{'s' * (unused > 1)} left out")
    is_premultiplied = bool(alphas) and page.extrasamples[alphas[0] - channels] == _ASSOCIATED
    if photometric == _PALETTE:
        color = _palette_colors(page, samples[..., 0])
        alpha = _scaled(samples[..., alphas[0]], page) if alphas else None
        return Raster(color, alpha, is_premultiplied)
    if page.dtype is not None and samples.dtype.itemsize > 2:
        remarks.append(f"reduced from {8 * samples.dtype.itemsize} to 16 bits")
    samples = _scaled(samples, page)
    color = samples[..., :channels]
    if photometric == _WHITE_IS_ZERO:
        color = np.iinfo(color.dtype).max - color
    return Raster(color, samples[..., alphas[0]] if alphas else None, is_premultiplied)


def _require_complete(page: TiffPage) -> None:
    """tifffile fills missing strips with black."""
    counts, offsets = page.databytecounts, page.dataoffsets
    wanted = int(np.prod(page.chunked))
    size = page.parent.filehandle.size
    starts = zip(offsets, counts, strict=False)
    if len(offsets) < wanted or any(count == 0 or at >= size for at, count in starts):
        raise ValueError("a part of the picture is missing")
    if page.is_contiguous and offsets[0] + page.nbytes > size:
        raise ValueError("the picture is cut off")


def _samples(page: TiffPage) -> NDArray[Any]:
    """(H, W, samples) in the machine's byte order."""
    samples = page.asarray(squeeze=False).reshape(page.shaped)[:, 0]
    if not samples.dtype.isnative:
        samples = samples.byteswap(inplace=True).view(samples.dtype.newbyteorder())
    if samples.shape[0] > 1:
        return np.moveaxis(samples[..., 0], 0, -1)
    return samples[0]


def _scaled(samples: NDArray[Any], page: TiffPage) -> NDArray[Any]:
    """Samples in which 255 or 65535 is white."""
    bits = page.bitspersample
    if page.sampleformat == _FLOAT:
        return _scaled_floats(samples)
    if page.sampleformat != _UINT:
        raise ValueError("signed or complex samples")
    if not isinstance(bits, int):
        raise ValueError("channels of different depths")
    if samples.dtype == bool:
        samples = samples.view(np.uint8)
    if bits in (8, 16):
        return samples
    if bits < 16:
        white = 255 if bits < 8 else 65535
        levels = np.arange(2**bits) * white / (2**bits - 1)
        return levels.round().astype(np.uint8 if bits < 8 else np.uint16)[samples]
    scaled = np.empty(samples.shape, np.uint16)
    for row, values in zip(scaled, samples, strict=True):
        row[:] = (values * (65535 / (2.0**bits - 1))).round()
    return scaled


def _scaled_floats(samples: NDArray[Any]) -> NDArray[np.uint16]:
    scaled = np.empty(samples.shape, np.uint16)
    for row, values in zip(scaled, samples, strict=True):
        if not (values.min() >= 0 and values.max() <= 1):  # also refuses NaN
            raise ValueError("floating-point samples outside 0 to 1: scale them first")
        row[:] = (values.astype(np.float64) * 65535).round()
    return scaled


def _palette_colors(page: TiffPage, indices: NDArray[Any]) -> NDArray[np.uint8]:
    palette = page.colormap
    if palette is None or palette.shape[0] != 3:
        raise ValueError("the palette is missing")
    colors = palette.T // (256 if palette.max() > 255 else 1)
    if indices.dtype == bool:
        indices = indices.view(np.uint8)
    return colors.astype(np.uint8)[indices]


def write(file: IO[bytes], samples: NDArray[Any], tags: exif.Tags, profile: bytes) -> None:
    """An uncompressed RGB TIFF of samples (H, W, 3), uint8 or uint16, with these tags as well."""
    order = tags.order
    height, width, channels = samples.shape
    bits = 8 * samples.dtype.itemsize
    if samples.nbytes > 2**32 - 2**20:
        raise ValueError("more than 4 GB: choose PNG")
    structure: exif.Directory = {
        256: exif.long(order, width),
        257: exif.long(order, height),
        258: exif.short(order, *[bits] * channels),
        259: exif.short(order, 1),
        262: exif.short(order, _RGB),
        273: exif.long(order, 0),
        277: exif.short(order, channels),
        278: exif.long(order, height),
        279: exif.long(order, samples.nbytes),
        exif.ICC_PROFILE: exif.undefined(profile),
    }
    main = {**tags.main, **structure}
    head_length = len(exif.write_block(replace(tags, main=main)))
    main[273] = exif.long(order, head_length)
    file.write(exif.write_block(replace(tags, main=main)))
    for row in samples:
        file.write(row.astype(row.dtype.newbyteorder(order)).tobytes())
