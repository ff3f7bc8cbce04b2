"""What the readers of file formats return, and what they refuse."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import ColorFluxError
from .metadata import Metadata
from .raster import Raster


@dataclass
class Decoded:
    """A file's picture as it lies in the file, and what the file says about it.

    ``orientation`` is EXIF's, 1 to 8; ``remarks`` say what was left out.
    """

    raster: Raster
    orientation: int
    metadata: Metadata
    remarks: list[str]
    format: str


class TooLarge(ColorFluxError):
    """More pixels than allowed."""


def require_size(width: int, height: int, max_megapixels: float) -> None:
    """Raises TooLarge, or ValueError for a picture without area."""
    if width < 1 or height < 1:
        raise ValueError("a picture without area")
    if width * height > max_megapixels * 1e6:
        raise TooLarge(
            f"has {width}x{height} pixels, {width * height / 1e6:.0f} megapixels: raise "
            f"the limit with --max-megapixels."
        )
