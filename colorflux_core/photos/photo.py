"""Photo files to sRGB tensors and back, with bit depth, metadata and resolution preserved."""

from __future__ import annotations

import io
import os
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from ..errors import ColorFluxError
from ..files import atomic_write
from . import jpeg, png, profiles, tiff
from .color import require_rgb, unit_range
from .decoded import Decoded, TooLarge
from .decoding import DECODING_ERRORS, decode, formats, pixels_upright
from .metadata import Metadata, Output, for_output, needs_sidecar
from .raster import to_srgb
from .xmp import DamagedXmp, Provenance, with_provenance

_FORMATS = {
    ".jpg": "JPEG",
    ".jpeg": "JPEG",
    ".jpe": "JPEG",
    ".jfif": "JPEG",
    ".png": "PNG",
    ".tif": "TIFF",
    ".tiff": "TIFF",
    ".webp": "WEBP",
}
_ONLY_READ = {".bmp": "BMP", ".gif": "GIF", ".avif": "AVIF", ".heic": "HEIF", ".heif": "HEIF"}
PHOTO_SUFFIXES = frozenset(_FORMATS)
"""Of the files that can be written."""

KNOWN_SUFFIXES = PHOTO_SUFFIXES | frozenset(_ONLY_READ)
"""Of photo files, whether or not they can be read here."""

MAX_MEGAPIXELS = 100.0


@dataclass(frozen=True, eq=False)
class Photo:
    """A photo read from a file: upright, in sRGB.

    Attributes:
        path: The file.
        pixels: (3, H, W), uint8, or uint16 for files of more than 8 bits. Gray files have three
            equal channels; transparent parts are on white.
        is_gray: Whether the file has one channel; a color file may still look gray.
        metadata: What the file says about the photo.
        format: Pillow's name of the file format.
        remarks: What of the file could not be kept, such as "2 further pages left out".
    """

    path: Path
    pixels: Tensor
    is_gray: bool
    metadata: Metadata = field(default_factory=Metadata)
    format: str = ""
    remarks: tuple[str, ...] = ()

    @property
    def bit_depth(self) -> int:
        """8 or 16."""
        return torch.iinfo(self.pixels.dtype).bits

    @property
    def size(self) -> tuple[int, int]:
        """(height, width)"""
        return self.pixels.shape[-2], self.pixels.shape[-1]

    @property
    def dpi(self) -> tuple[float, float] | None:
        """Horizontal and vertical resolution, if the file states one."""
        return self.metadata.dpi

    @property
    def rgb(self) -> Tensor:
        """(3, H, W), float32 in [0, 1]; computed on each access."""
        return unit_range(self.pixels)


def is_readable_suffix(suffix: str) -> bool:
    """Whether files with this suffix can be read here, some of them with a plugin of Pillow's."""
    suffix = suffix.lower()
    return suffix in PHOTO_SUFFIXES or _ONLY_READ.get(suffix) in formats()


def readable_suffixes() -> list[str]:
    return sorted(suffix for suffix in KNOWN_SUFFIXES if is_readable_suffix(suffix))


def is_photo_file(path: Path) -> bool:
    """Whether the path is a visible file with the suffix of a photo that can be read."""
    visible = not path.name.startswith(".")
    return visible and is_readable_suffix(path.suffix) and path.is_file()


def load_photo(path: str | Path, *, max_megapixels: float = MAX_MEGAPIXELS) -> Photo:
    """Read a JPEG, PNG, TIFF, WebP, BMP, GIF, AVIF or (with a plugin) HEIC file.

    Gray, palette, RGB and CMYK of 1 to 16 bits, with or without alpha; TIFF also of 32 bits and
    floating point in [0, 1], which become 16 bits. EXIF orientation is applied, and an embedded
    color profile, or PNG's gamma, converted to sRGB.

    Raises:
        ColorFluxError: when the file is missing, not a photo, damaged, or larger than
            ``max_megapixels``, which is checked before decoding.
    """
    path = Path(path)
    try:
        with _opened(path) as file:
            decoded = decode(file, max_megapixels)
        return _photo(path, decoded)
    except TooLarge as error:
        raise ColorFluxError(f"{path} {error}") from error
    except FileNotFoundError as error:
        raise ColorFluxError(f"{path} does not exist.") from error
    except UnidentifiedImageError as error:
        raise ColorFluxError(
            f"{path} is not a photo, or its header is damaged: {_kinds()} files can be read."
        ) from error
    except MemoryError as error:
        raise ColorFluxError(f"{path} does not fit into memory: reduce its size.") from error
    except DECODING_ERRORS as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ColorFluxError(
            f"{path} cannot be read ({reason}): it is damaged, incomplete or not supported. "
            f"Copy the photo again, or save it as PNG."
        ) from error


def _opened(path: Path) -> BinaryIO:
    if path.is_dir():
        raise ColorFluxError(f"{path} is a folder, not a photo.")
    if path.exists() and not path.is_file():
        raise ColorFluxError(f"{path} is not a file.")
    if path.is_file() and path.stat().st_size == 0:
        raise ColorFluxError(f"{path} is an empty file: copy the photo again.")
    return path.open("rb")


def _photo(path: Path, decoded: Decoded) -> Photo:
    samples, remarks = to_srgb(decoded.raster)
    samples = pixels_upright(samples, decoded.orientation)
    if min(samples.strides) < 0 or not samples.flags.writeable:
        samples = samples.copy()
    pixels = torch.from_numpy(samples)
    pixels = pixels.expand(3, -1, -1) if pixels.ndim == 2 else pixels.permute(2, 0, 1)
    metadata = replace(decoded.metadata, modified=path.stat().st_mtime_ns)
    remarks = [*decoded.remarks, *remarks]
    return Photo(path, pixels, decoded.raster.is_gray, metadata, decoded.format, tuple(remarks))


def _kinds() -> str:
    return ", ".join(name for name in ("JPEG", "TIFF", *formats()[1:]) if name)


def save_photo(
    path: str | Path,
    rgb: Tensor,
    like: Photo | None = None,
    *,
    metadata: Metadata | None = None,
    bit_depth: int | None = None,
    provenance: Provenance | None = None,
) -> list[str]:
    """Write an sRGB photo atomically, in the format of the path's suffix.

    JPEG is written at quality 95, 4:4:4.

    Args:
        path: Its suffix is in ``PHOTO_SUFFIXES``.
        rgb: (3, H, W), floating point in [0, 1], uint8 or uint16.
        like: The original photo: its metadata, print size, bit depth and modification time are
            kept as far as the format supports them.
        metadata: In place of ``like``'s; its resolution is the result's.
        bit_depth: 8 or 16, which PNG and TIFF can hold; in place of ``like``'s.
        provenance: How it was made, which the file then says.

    Returns:
        What of the metadata the format cannot hold.

    Raises:
        ColorFluxError: for another suffix, pixels that are no picture, or when the file cannot be
            written.
    """
    path = Path(path)
    file_format = _FORMATS.get(path.suffix.lower())
    if file_format is None:
        raise ColorFluxError(
            f"{path} cannot be written: end the output's name in one of "
            f"{', '.join(sorted(PHOTO_SUFFIXES))}."
        )
    require_rgb(rgb)
    if metadata is None:
        metadata = like.metadata.scaled(rgb.shape[-1] / like.size[1]) if like else Metadata()
    depth = bit_depth or (like.bit_depth if like else 8)
    is_deep = depth == 16 and file_format in ("PNG", "TIFF")
    packet, lost = metadata.xmp, []
    if provenance:
        try:
            packet = with_provenance(packet, provenance)
        except DamagedXmp:
            packet, lost = with_provenance(b"", provenance), ["damaged XMP dropped"]
    output = for_output(metadata, file_format, (rgb.shape[-2], rgb.shape[-1]), packet)
    sidecar = path.with_name(path.name + ".xmp")
    if needs_sidecar(output, file_format):
        with atomic_write(sidecar) as unfinished:
            unfinished.write_bytes(output.xmp)
        lost.append(f"XMP too large, in {sidecar.name}")
    with atomic_write(path) as unfinished:
        with unfinished.open("wb") as file:
            _write(file, file_format, samples_of(rgb, 16 if is_deep else 8), output, metadata.dpi)
        if metadata.modified is not None:
            os.utime(unfinished, ns=(metadata.modified, metadata.modified))
    return lost + output.lost


def samples_of(rgb: Tensor, bits: int) -> NDArray[Any]:
    """(3, H, W) as (H, W, 3) of 8 or 16 bits, channel by channel to save memory on large scans."""
    dtype, top = (np.uint8, 255) if bits == 8 else (np.uint16, 65535)
    if not rgb.is_floating_point() and torch.iinfo(rgb.dtype).bits == bits:
        return rgb.permute(1, 2, 0).cpu().contiguous().numpy()
    channels = [
        (unit_range(channel).clamp(0, 1) * top).round().cpu().numpy().astype(dtype)
        for channel in rgb
    ]
    return np.stack(channels, axis=-1)


def _write(
    file: Any,
    file_format: str,
    samples: NDArray[Any],
    output: Output,
    dpi: tuple[float, float] | None,
) -> None:
    profile = profiles.srgb_profile()
    if file_format == "TIFF":
        tiff.write(file, samples, output.tags, profile)
        return
    chunks = [png.profile_chunk("sRGB", profile), *output.chunks]
    if samples.dtype == np.uint16:
        png.write_sixteen_bit(file, samples, chunks)
        return
    # Encode in memory: Pillow gives no reason when it cannot write to a file.
    encoded = io.BytesIO()
    image = Image.fromarray(samples)
    if file_format == "JPEG":
        options: dict[str, Any] = {"dpi": dpi} if dpi and max(dpi) < 65535 else {}
        image.save(encoded, "JPEG", quality=95, subsampling="4:4:4", icc_profile=profile, **options)
        file.write(jpeg.with_segments(encoded.getvalue(), output.segments))
    elif file_format == "PNG":
        image.save(encoded, "PNG")
        file.writelines(png.with_chunks(encoded.getvalue(), chunks))
    else:
        image.save(
            encoded, "WEBP", quality=95, icc_profile=profile, exif=output.exif, xmp=output.xmp
        )
        file.write(encoded.getbuffer())
