"""Settings of a restoration, with their defaults."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ..errors import ColorFluxError

ColorFix = Literal["wavelet", "adain", "none"]

MULTIPLE = 64
"""Images are padded to a multiple of this many pixels, because the UNet halves latents 3 times."""

SMALLEST_TILE = 4 * MULTIPLE


@dataclass(frozen=True)
class Restoration:
    """Settings of a restoration. The defaults are S3Diff's, except for the scale (4 there).

    Raises:
        ColorFluxError: for an invalid value.
    """

    scale: float = 1.0
    """Upscaling factor, 1 to 4. S3Diff was trained at 4."""

    tile: int = 768
    """Side of a tile in output pixels. Smaller tiles take less memory and more time."""

    guidance: float = 1.07
    """Classifier-free guidance scale."""

    color_fix: ColorFix = "wavelet"
    """Method that transfers the scan's colors to the result."""

    gray: bool = False
    """Convert the result to gray before a colorization, because SD-Turbo can tint."""

    seed: int | None = 0
    """Seed of the latent noise; None uses the mode of the latents."""

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
