"""Photo files other than TIFF, read with Pillow; PNG files of 16 bits with imagecodecs."""

from __future__ import annotations

import functools
import importlib
import io
import struct
import threading
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import BinaryIO

import imagecodecs
import numpy as np
from PIL import Image

from . import jpeg, png, profiles, tiff
from .decoded import Decoded, require_size
from .metadata import Reader, block, read_jpeg, read_png
from .raster import Raster, raster_of

_PILLOWS_LIMIT = threading.RLock()
_FORMATS = ["JPEG", "PNG", "WEBP", "GIF", "BMP", "AVIF", "HEIF"]

DECODING_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    LookupError,
    ArithmeticError,
    AttributeError,
    AssertionError,
    EOFError,
    RuntimeError,
    struct.error,
    zlib.error,
)
"""What Pillow, tifffile and imagecodecs raise for damaged files, as fuzzing shows."""


@functools.cache
def formats() -> list[str]:
    """The formats that Pillow reads here, some of them with a plugin."""
    Image.init()
    if "HEIF" not in Image.OPEN:
        with suppress(ImportError, AttributeError):
            importlib.import_module("pillow_heif").register_heif_opener()
    return [name for name in _FORMATS if name in Image.OPEN]


def decode(file: BinaryIO, max_megapixels: float) -> Decoded:
    """A photo file's picture, which is not larger than allowed.

    Raises what is in ``DECODING_ERRORS``, UnidentifiedImageError among them, or TooLarge.
    """
    start = file.read(16)
    file.seek(0)
    if start[:4] in tiff.MAGIC:
        with _without_pillows_limit():
            return tiff.decode(file, max_megapixels)
    if start[:8] == png.SIGNATURE:
        return _decode_png(file, max_megapixels)
    if start[:3] == b"\xff\xd8\xff":
        return _decode_jpeg(file.read(), max_megapixels)
    return _decode_other(file, max_megapixels)


def _decode_jpeg(data: bytes, max_megapixels: float) -> Decoded:
    segments = jpeg.read_segments(data)
    with _opened(io.BytesIO(data), ["JPEG"], max_megapixels) as image:
        raster = raster_of(image)
        raster.profile = image.info.get("icc_profile") or b""
        if jpeg.is_cut(data, segments):
            raise ValueError("the file ends before the picture is complete")
    reader = Reader()
    metadata = read_jpeg(reader, segments)
    return Decoded(raster, reader.orientation, metadata, reader.remarks, "JPEG")


def _decode_png(file: BinaryIO, max_megapixels: float) -> Decoded:
    picture, chunks = png.read_chunks(file)
    if picture[25:26] == b"\3" and picture[37:41] != b"PLTE":
        raise ValueError("the palette is missing")
    reader = Reader()
    metadata = read_png(reader, chunks)
    with _opened(io.BytesIO(picture), ["PNG"], max_megapixels, load=False) as image:
        depth = picture[24]
        if depth == 16:
            samples = imagecodecs.png_decode(picture)
            samples = samples.reshape(*samples.shape[:2], -1)
            has_alpha = samples.shape[-1] in (2, 4)
            color = samples[..., :-1] if has_alpha else samples
            raster = Raster(color, samples[..., -1] if has_alpha else None)
        else:
            image.load()
            raster = raster_of(image)
    raster.profile = _png_profile(chunks, raster.color.shape[-1])
    by_name = dict(reversed(chunks))
    if len(by_name.get(b"acTL", b"")) == 8:
        _note_frames(reader, int.from_bytes(by_name[b"acTL"][:4], "big"))
    return Decoded(raster, reader.orientation, metadata, reader.remarks, "PNG")


def _decode_other(file: BinaryIO, max_megapixels: float) -> Decoded:
    with _opened(file, formats(), max_megapixels) as image:
        raster = raster_of(image)
        raster.profile = image.info.get("icc_profile") or b""
        info = image.info
        comment = info.get("comment", b"")
        reader = Reader()
        metadata = reader.read(
            exif=block(info.get("exif") or b""),
            xmp=lambda: info.get("xmp") or b"",
            comment=comment if isinstance(comment, bytes) else str(comment).encode(),
            dpi=info.get("dpi") if image.format == "BMP" else None,
        )
        _note_frames(reader, getattr(image, "n_frames", 1))
        return Decoded(raster, reader.orientation, metadata, reader.remarks, image.format or "")


@contextmanager
def _opened(
    file: BinaryIO, allowed: list[str], max_megapixels: float, *, load: bool = True
) -> Iterator[Image.Image]:
    """The image of a file, decoded unless ``load`` is False."""
    with _without_pillows_limit(), Image.open(file, formats=allowed) as image:
        require_size(*image.size, max_megapixels)
        if load:
            image.load()
        yield image


@contextmanager
def _without_pillows_limit() -> Iterator[None]:
    """Disable Pillow's limit on pixels; it is global, so only one thread at a time may do so."""
    with _PILLOWS_LIMIT:
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = limit


def _note_frames(reader: Reader, frames: int) -> None:
    if frames > 1:
        further = frames - 1
        reader.remarks.append(f"{further} further picture{'s' * (further > 1)} left out")


def _png_profile(chunks: Sequence[png.Chunk], channels: int) -> bytes:
    """The profile that a PNG file embeds or describes; empty for sRGB."""
    by_name = dict(reversed(chunks))
    if b"iCCP" in by_name:
        _, _, rest = by_name[b"iCCP"].partition(b"\0")
        try:
            return png.inflate(rest[1:])
        except zlib.error:
            return b"damaged"
    gamma = by_name.get(b"gAMA", b"")
    if b"sRGB" in by_name or len(gamma) != 4:
        return b""
    chroma = by_name.get(b"cHRM", b"")
    coordinates = (
        tuple(value / 100000 for value in struct.unpack(">8I", chroma))
        if len(chroma) == 32
        else None
    )
    value = int.from_bytes(gamma, "big") / 100000
    return profiles.gamma_profile(value, coordinates, channels) or b""


def pixels_upright(samples: np.ndarray, orientation: int) -> np.ndarray:
    """(H, W[, C]) as EXIF's orientation says it is seen."""
    if orientation >= 5:
        samples = samples.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        samples = samples[::-1]
    if orientation in (2, 3, 6, 7):
        samples = samples[:, ::-1]
    return samples
