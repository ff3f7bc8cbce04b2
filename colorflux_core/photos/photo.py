"""Photo files to sRGB tensors and back, with bit depth, EXIF data and resolution preserved."""

from __future__ import annotations

import functools
import io
import logging
import struct
import threading
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import (
    ExifTags,
    Image,
    ImageCms,
    ImageFile,
    ImageOps,
    TiffImagePlugin,
    UnidentifiedImageError,
)
from torch import Tensor

from ..errors import ColorFluxError
from ..files import atomic_write
from .color import unit_range
from .sixteen_bit import is_deep_color, turn_byte_order, write_png, write_tiff

logger = logging.getLogger(__name__)

_FORMATS = {
    ".jpg": "JPEG",
    ".jpeg": "JPEG",
    ".png": "PNG",
    ".tif": "TIFF",
    ".tiff": "TIFF",
    ".webp": "WEBP",
}
_FORMATS_READ = sorted(set(_FORMATS.values()))
PHOTO_SUFFIXES = frozenset(_FORMATS)

MAX_MEGAPIXELS = 100.0
_PILLOWS_LIMIT = threading.RLock()

_ENCODING: dict[str, dict[str, Any]] = {
    "JPEG": {"quality": 95, "subsampling": "4:4:4"},
    "PNG": {},
    "TIFF": {},  # uncompressed: Pillow loses the EXIF block when libtiff compresses
    "WEBP": {"quality": 95},
}

_GRAY_MODES = ("1", "L", "LA", "La", "I", "I;16", "I;16B", "I;16L", "I;16N")
_DECODING_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    KeyError,
    EOFError,
    struct.error,
    zlib.error,
)
# Tags that describe the photo, not its original file.
_KEPT_TAGS = {
    ExifTags.Base.ImageDescription,
    ExifTags.Base.Make,
    ExifTags.Base.Model,
    ExifTags.Base.Software,
    ExifTags.Base.DateTime,
    ExifTags.Base.Artist,
    ExifTags.Base.Copyright,
}
_DROPPED_TAGS = {
    ExifTags.Base.ExifImageWidth,
    ExifTags.Base.ExifImageHeight,
    ExifTags.Base.ColorSpace,
    ExifTags.Base.MakerNote,
    ExifTags.IFD.Interop,
}


@dataclass(frozen=True, eq=False)
class Photo:
    """A photo read from a file: upright, in sRGB.

    Attributes:
        path: The file.
        pixels: (3, H, W), uint8, or uint16 for 16-bit files. Gray files have three equal channels;
            transparent parts are on white.
        is_gray: Whether the file has one channel; a color file may still look gray.
        exif: EXIF block for the output, without orientation, sizes and thumbnail; may be empty.
        dpi: Horizontal and vertical resolution, if the file has one.
        format: Pillow's name of the file format.
    """

    path: Path
    pixels: Tensor
    is_gray: bool
    exif: bytes
    dpi: tuple[float, float] | None
    format: str

    @property
    def bit_depth(self) -> int:
        """8 or 16."""
        return torch.iinfo(self.pixels.dtype).bits

    @property
    def size(self) -> tuple[int, int]:
        """(height, width)"""
        return self.pixels.shape[-2], self.pixels.shape[-1]

    @property
    def rgb(self) -> Tensor:
        """(3, H, W), float32 in [0, 1]; computed on each access."""
        return unit_range(self.pixels)


def is_photo_file(path: Path) -> bool:
    """Whether the path is a visible file with the suffix of a photo."""
    visible = not path.name.startswith(".")
    return visible and path.suffix.lower() in PHOTO_SUFFIXES and path.is_file()


def load_photo(path: str | Path, *, max_megapixels: float = MAX_MEGAPIXELS) -> Photo:
    """Read a JPEG, PNG, TIFF (its first page) or WebP of 1, 8 or 16 bits.

    Gray, palette, RGB and CMYK, with or without alpha. EXIF orientation is applied, and embedded
    ICC profiles are converted to sRGB. 16 bits are kept for gray, and for RGB and RGBA in sRGB. All
    else of 16 bits is reduced to 8: gray with alpha, CMYK, planar TIFFs and other profiles.

    Raises:
        ColorFluxError: when the file is missing, not a photo, damaged, or larger than
            ``max_megapixels``, which is checked before decoding.
    """
    path = Path(path)
    with _opened(path, max_megapixels) as image:
        profile = _foreign_profile(image)
        deep_color = is_deep_color(image) and not profile
        is_gray = image.mode in _GRAY_MODES
        high = _upright(image)
        if deep_color:
            with _opened(path, max_megapixels) as again:
                turn_byte_order(again)
                samples = _on_white(_join_bytes(high, _upright(again)))
        elif image.mode.startswith("I"):
            samples = _deep_gray(high, profile)
        else:
            samples = np.array(_to_8_bits(high, profile))
        pixels = torch.from_numpy(samples)
        pixels = pixels.expand(3, -1, -1) if pixels.ndim == 2 else pixels.permute(2, 0, 1)
        return Photo(path, pixels, is_gray, _kept_exif(image), _dpi(image), image.format or "")


@contextmanager
def _opened(path: Path, max_megapixels: float) -> Iterator[ImageFile.ImageFile]:
    """Open an image without decoding it; errors while it is open become a ColorFluxError."""
    try:
        if path.is_file() and path.stat().st_size == 0:
            raise ColorFluxError(f"{path} is an empty file: copy the photo again.")
        with _without_pillows_limit(), Image.open(path, formats=_FORMATS_READ) as image:
            width, height = image.size
            if width * height > max_megapixels * 1e6:
                raise ColorFluxError(
                    f"{path} has {width}x{height} pixels, {width * height / 1e6:.0f} "
                    f"megapixels: raise the limit with --max-megapixels."
                )
            yield image
    except FileNotFoundError as error:
        raise ColorFluxError(f"{path} does not exist.") from error
    except IsADirectoryError as error:
        raise ColorFluxError(f"{path} is a folder, not a photo.") from error
    except UnidentifiedImageError as error:
        raise ColorFluxError(
            f"{path} is not a photo, or its header is damaged: JPEG, PNG, TIFF and WebP files "
            f"can be read."
        ) from error
    except MemoryError as error:
        raise ColorFluxError(f"{path} does not fit into memory: reduce its size.") from error
    except _DECODING_ERRORS as error:
        raise ColorFluxError(
            f"{path} cannot be read ({error}): it is damaged, incomplete or not supported. "
            f"Copy the photo again, or save it as PNG."
        ) from error


@contextmanager
def _without_pillows_limit() -> Iterator[None]:
    """Disable Pillow's limit on pixels; it is global, so only one thread at a time may do so."""
    with _PILLOWS_LIMIT:
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = limit


def _upright(image: ImageFile.ImageFile) -> Image.Image:
    image.load()
    ImageOps.exif_transpose(image, in_place=True)
    return image


def _join_bytes(high: Image.Image, low: Image.Image) -> NDArray[np.uint16]:
    samples = np.asarray(high).astype(np.uint16)
    samples <<= 8
    samples |= np.asarray(low)
    return samples


def _on_white(samples: NDArray[np.uint16]) -> NDArray[np.uint16]:
    if samples.shape[-1] == 3:
        return samples
    opacity = samples[..., 3:].astype(np.float32) / 65535
    return (65535 - (65535 - samples[..., :3]) * opacity).round().astype(np.uint16)


def _deep_gray(image: Image.Image, profile: bytes | None) -> NDArray[np.uint16]:
    samples = np.asarray(image).clip(0, 65535).astype(np.uint16)
    if getattr(image, "tag_v2", {}).get(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION) == 0:
        samples = 65535 - samples  # White is zero, which Pillow inverts only in 8 bits.
    if profile:
        ramp = Image.fromarray(np.arange(256, dtype=np.uint8)[None])
        curve = np.asarray(_to_srgb(ramp, profile).convert("L"))[0] * 257.0
        table = np.interp(np.arange(65536), np.arange(256) * 257, curve)
        samples = table.round().astype(np.uint16)[samples]
    return samples


def _to_8_bits(image: Image.Image, profile: bytes | None) -> Image.Image:
    """Convert to gray (L) or RGB, in sRGB and on white."""
    if image.mode == "F":
        raise ValueError("floating-point samples")
    alpha = None
    is_gray = image.mode in _GRAY_MODES
    if image.has_transparency_data:
        image = image.convert("RGBA")
        alpha = image.getchannel("A")
    wanted = "L" if is_gray else "RGB"
    if image.mode not in ("CMYK", wanted):
        image = image.convert(wanted)
    if profile:
        image = _to_srgb(image, profile)
    if image.mode == "CMYK":
        image = image.convert("RGB")
    if alpha:
        image = Image.composite(image, Image.new(image.mode, image.size, "white"), alpha)
    return image


def _foreign_profile(image: Image.Image) -> bytes | None:
    """The embedded profile, unless it is sRGB."""
    profile: bytes | None = image.info.get("icc_profile")
    if not profile:
        return None
    try:
        opened = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        is_srgb = "srgb" in ImageCms.getProfileDescription(opened).lower()
    except (OSError, ImageCms.PyCMSError) as error:
        logger.warning("The embedded color profile is ignored: %s", error)
        return None
    return None if is_srgb else profile


def _to_srgb(image: Image.Image, profile: bytes) -> Image.Image:
    """Convert L, RGB or CMYK from the profile to sRGB; unchanged if the profile does not fit."""
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        target = ImageCms.ImageCmsProfile(io.BytesIO(_srgb_profile()))
        if image.mode == "L" and source.profile.xcolor_space == "RGB ":
            image = image.convert("RGB")
        converted = cast(
            Image.Image, ImageCms.profileToProfile(image, source, target, outputMode="RGB")
        )
    except (OSError, ImageCms.PyCMSError) as error:
        logger.warning("The embedded color profile is ignored: %s", error)
        return image
    return converted.convert("L") if image.mode == "L" else converted


@functools.cache
def _srgb_profile() -> bytes:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    # A fixed creation date, so that the same photo gives the same file.
    return profile[:24] + struct.pack(">6H", 2000, 1, 1, 0, 0, 0) + profile[36:]


def _kept_exif(image: Image.Image) -> bytes:
    kept = Image.Exif()
    try:
        found = image.getexif()
        for tag in _KEPT_TAGS & found.keys():
            kept[tag] = found[tag]
        for ifd in (ExifTags.IFD.Exif, ExifTags.IFD.GPSInfo):
            entries = found.get_ifd(ifd)
            if entries.keys() - _DROPPED_TAGS:
                kept[ifd] = {tag: entries[tag] for tag in entries.keys() - _DROPPED_TAGS}
        return kept.tobytes() if len(kept) else b""
    except _DECODING_ERRORS as error:
        logger.warning("The EXIF block is damaged and is not kept: %s", error)
        return b""


def _dpi(image: Image.Image) -> tuple[float, float] | None:
    try:
        horizontal, vertical = (float(value) for value in image.info["dpi"])
    except (KeyError, TypeError, ValueError, ZeroDivisionError):
        return None
    is_stated = 1 < horizontal < 1e5 and 1 < vertical < 1e5
    return (horizontal, vertical) if is_stated else None


def save_photo(path: str | Path, rgb: Tensor, like: Photo | None = None) -> None:
    """Write an sRGB photo (3, H, W) in [0, 1] atomically, in the format of the path's suffix.

    ``like`` is the original photo: its EXIF block and print size are kept, and 16 bits if the
    format supports them (PNG, TIFF). JPEG is written at quality 95, 4:4:4.

    Raises:
        ColorFluxError: for a suffix that is not in ``PHOTO_SUFFIXES``, or when the file cannot be
            written.
    """
    path = Path(path)
    file_format = _FORMATS.get(path.suffix.lower())
    if file_format is None:
        raise ColorFluxError(
            f"{path} cannot be written: end the output's name in one of "
            f"{', '.join(sorted(PHOTO_SUFFIXES))}."
        )
    metadata: dict[str, Any] = {"icc_profile": _srgb_profile()}
    if like and like.exif:
        metadata["exif"] = like.exif
    if like and like.dpi:
        growth = rgb.shape[-1] / like.size[1]
        metadata["dpi"] = tuple(growth * resolution for resolution in like.dpi)
    with atomic_write(path) as unfinished, unfinished.open("wb") as file:
        if like and like.bit_depth == 16 and file_format in ("PNG", "TIFF"):
            write = write_png if file_format == "PNG" else write_tiff
            write(file, _samples(rgb, np.uint16), **metadata)
        else:
            # Encode in memory: Pillow gives no reason when it cannot write to a file.
            encoded = io.BytesIO()
            image = Image.fromarray(_samples(rgb, np.uint8))
            image.save(encoded, file_format, **_ENCODING[file_format], **metadata)
            file.write(encoded.getbuffer())


def _samples(rgb: Tensor, dtype: type[np.unsignedinteger[Any]]) -> NDArray[Any]:
    """(3, H, W) in [0, 1] as (H, W, 3), channel by channel to save memory on large scans."""
    top = np.iinfo(dtype).max
    channels = [(channel.clamp(0, 1) * top).round().cpu().numpy().astype(dtype) for channel in rgb]
    return np.stack(channels, axis=-1)
