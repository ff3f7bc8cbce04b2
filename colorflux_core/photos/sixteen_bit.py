"""16-bit color, which Pillow lacks: reading the low bytes, and writing PNG and TIFF files."""

from __future__ import annotations

import struct
import sys
import zlib
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageFile, PngImagePlugin, TiffImagePlugin

_OTHER_ORDER = {"L": "B", "B": "L", "N": "B" if sys.byteorder == "little" else "L"}


def is_deep_color(image: ImageFile.ImageFile) -> bool:
    """Whether a newly opened image is 16-bit RGB or RGBA, of which Pillow reads the high bytes.

    False for planar samples, which Pillow reads only in 8 bits.
    """
    rawmodes = {_rawmode(tile) for tile in image.tile}
    return bool(rawmodes) and rawmodes <= {
        f"{mode};16{order}" for mode in ("RGB", "RGBX", "RGBA") for order in _OTHER_ORDER
    }


def turn_byte_order(image: ImageFile.ImageFile) -> None:
    """Swap the byte order of the samples, so that Pillow loads the low bytes."""
    image.tile = [_turned(tile) for tile in image.tile]


def _rawmode(tile: Any) -> str:
    arguments = tile[3]
    return str(arguments[0] if isinstance(arguments, tuple) else arguments)


def _turned(tile: Any) -> Any:
    codec, extents, offset, arguments = tile
    rawmode = _rawmode(tile)
    rawmode = rawmode[:-1] + _OTHER_ORDER[rawmode[-1]]
    if isinstance(arguments, tuple):
        return ImageFile._Tile(codec, extents, offset, (rawmode, *arguments[1:]))
    return ImageFile._Tile(codec, extents, offset, rawmode)


def write_png(
    file: IO[bytes],
    samples: NDArray[np.uint16],
    *,
    icc_profile: bytes,
    exif: bytes = b"",
    dpi: tuple[float, float] | None = None,
) -> None:
    """A 16-bit RGB PNG of samples (H, W, 3)."""
    height, width, _ = samples.shape
    chunk = PngImagePlugin.putchunk
    file.write(b"\x89PNG\r\n\x1a\n")
    chunk(file, b"IHDR", struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0))
    chunk(file, b"iCCP", b"sRGB\0\0" + zlib.compress(icc_profile))
    if dpi:
        per_meter = [round(value / 0.0254) for value in dpi]
        chunk(file, b"pHYs", struct.pack(">IIB", *per_meter, 1))
    if exif:
        chunk(file, b"eXIf", exif.removeprefix(b"Exif\0\0"))
    deflate = zlib.compressobj(6)
    above = np.zeros(width * 6, np.uint8)
    for row in samples:
        line = row.astype(">u2").reshape(-1).view(np.uint8)
        compressed = deflate.compress(b"\2" + (line - above).tobytes())  # filter 2: up
        above = line
        if compressed:
            chunk(file, b"IDAT", compressed)
    chunk(file, b"IDAT", deflate.flush())
    chunk(file, b"IEND", b"")


def write_tiff(
    file: IO[bytes],
    samples: NDArray[np.uint16],
    *,
    icc_profile: bytes,
    exif: bytes = b"",
    dpi: tuple[float, float] | None = None,
) -> None:
    """A 16-bit RGB TIFF of samples (H, W, 3), uncompressed."""
    height, width, _ = samples.shape
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    kept = Image.Exif()
    kept.load(exif)
    for tag in kept:
        tags[tag] = kept.get_ifd(tag) if tag in set(ExifTags.IFD) else kept[tag]
    tags[TiffImagePlugin.IMAGEWIDTH] = width
    tags[TiffImagePlugin.IMAGELENGTH] = height
    tags[TiffImagePlugin.BITSPERSAMPLE] = (16, 16, 16)
    tags[TiffImagePlugin.COMPRESSION] = 1
    tags[TiffImagePlugin.PHOTOMETRIC_INTERPRETATION] = 2
    tags[TiffImagePlugin.SAMPLESPERPIXEL] = 3
    tags[TiffImagePlugin.ROWSPERSTRIP] = height
    tags[TiffImagePlugin.STRIPOFFSETS] = 0  # counted from the end of the tags
    tags[TiffImagePlugin.STRIPBYTECOUNTS] = samples.nbytes
    tags[TiffImagePlugin.ICCPROFILE] = icc_profile
    if dpi:
        tags[TiffImagePlugin.RESOLUTION_UNIT] = 2
        tags[TiffImagePlugin.X_RESOLUTION], tags[TiffImagePlugin.Y_RESOLUTION] = dpi
    tags.save(file)
    order = "<u2" if tags.prefix == b"II" else ">u2"
    for row in samples:
        file.write(row.astype(order).tobytes())
