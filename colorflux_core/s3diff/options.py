"""The choices behind one restoration; their defaults are written down here only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ..errors import ColorFluxError

ColorFix = Literal["wavelet", "adain", "none"]

MULTIPLE = 64
"""Pixels, to which a picture is filled up: SD-Turbo halves its latents three times."""

SMALLEST_TILE = 4 * MULTIPLE


@dataclass(frozen=True)
class Restoration:
    """How to restore. The defaults are S3Diff's, but for the scale, which there is 4.

    Raises:
        ColorFluxError: for a value that cannot be used.
    """

    scale: float = 1.0
    """Size of the result over size of the scan, 1 to 4. S3Diff was trained at 4."""

    tile: int = 768
    """Side of a tile in pixels of the result: smaller takes less memory and more time."""

    guidance: float = 1.07
    """Of the positive prompt over the negative."""

    color_fix: ColorFix = "wavelet"
    """What takes the scan's own colors over."""

    gray: bool = False
    """Whether the result is made gray, as for a colorization: SD-Turbo can tint."""

    seed: int | None = 0
    """Of the noise in the latents; None takes their mode."""

    def __post_init__(self) -> None:
        if not 1 <= self.scale <= 4:
            raise ColorFluxError(f"scale is {self.scale}; set it from 1 to 4.")
        if self.tile < SMALLEST_TILE or self.tile % MULTIPLE:
            raise ColorFluxError(
                f"tile is {self.tile}; set it to a multiple of {MULTIPLE} from {SMALLEST_TILE}."
            )
        if not self.guidance >= 0:
            raise ColorFluxError(f"guidance is {self.guidance}; set it to 0 or more.")
        if self.seed is not None and not 0 <= self.seed < 2**64:
            raise ColorFluxError(f"seed is {self.seed}; set it from 0 to {2**64 - 1}.")
