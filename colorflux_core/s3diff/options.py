"""Settings of a restoration, with their defaults."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ..options import Options, setting

ColorFix = Literal["wavelet", "adain", "none"]

MULTIPLE = 64
"""Images are padded to a multiple of this many pixels, because the UNet halves latents 3 times."""

SMALLEST_TILE = 4 * MULTIPLE


@dataclass(frozen=True)
class Restoration(Options):
    """Settings of a restoration. The defaults are S3Diff's, except for the scale (4 there).

    Raises:
        ColorFluxError: for an invalid value.
    """

    scale: float = setting(
        1.0,
        "size of the result relative to the scan; S3Diff was trained at 4",
        low=1,
        high=4,
    )
    tile: int = setting(
        768,
        "side of a tile in pixels of the result; smaller tiles take less memory and more time",
        low=SMALLEST_TILE,
        multiple_of=MULTIPLE,
    )
    guidance: float = setting(
        1.07, "guidance scale of the positive prompt against the negative one", low=0
    )
    color_fix: ColorFix = setting(
        "wavelet",
        "how the scan's own colors are restored. wavelet: everything coarser than 32 pixels. "
        "adain: the mean and spread of each channel",
    )
    gray: bool = setting(
        False, "make the result gray, as for a colorization: SD-Turbo can add a tint"
    )
    seed: int | None = setting(0, "random seed of the noise in the latents", low=0, high=2**64 - 1)
    """None takes the latents' mode instead of a sample."""
