"""The canvas: the size at which the model works. Without torch, so that ``--help`` is fast."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from ..errors import ColorFluxError
from ..options import Options, setting

Size = tuple[int, int]
"""(height, width) in pixels."""

MULTIPLE = 16
"""FLUX packs 2x2 patches of a latent at 1/8 size."""


@dataclass(frozen=True)
class Canvas(Options):
    """The size at which the model works.

    ``mode`` is ``"square"`` (as in the paper, ``pixels`` x ``pixels``), ``"aspect"`` (the photo's
    aspect ratio with about as many pixels) or a size such as ``"768x1024"``, width first. All sides
    are multiples of 16.

    Raises:
        ColorFluxError: for any other mode, or a side that is not a positive multiple of 16.
    """

    mode: str = setting(
        "square",
        "size at which the model works. square, as in the paper: the photo is squashed to a square "
        "and stretched back afterwards. aspect: the photo's proportions, with as many pixels",
        metavar="square|aspect|WxH",
    )
    pixels: int = setting(
        1024,
        "side of the square canvas in pixels; aspect has the same area",
        low=MULTIPLE,
        multiple_of=MULTIPLE,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        explicit = self._explicit_size()
        if self.mode not in ("square", "aspect") and explicit is None:
            raise ColorFluxError(
                f"The canvas must be square, aspect or WIDTHxHEIGHT, not {self.mode!r}: set canvas."
            )
        for side in explicit or ():
            if side < MULTIPLE or side % MULTIPLE:
                raise ColorFluxError(
                    f"The canvas has a side of {side} pixels: set canvas to multiples of "
                    f"{MULTIPLE}, such as {max(1, round(side / MULTIPLE)) * MULTIPLE}."
                )

    def _explicit_size(self) -> Size | None:
        match = re.fullmatch(r"(\d+)x(\d+)", self.mode)
        return (int(match[2]), int(match[1])) if match else None

    def size(self, original: Size) -> Size:
        """The canvas for a photo of this size."""
        explicit = self._explicit_size()
        if explicit:
            return explicit
        if self.mode == "square":
            return self.pixels, self.pixels
        proportion = math.sqrt(original[0] / original[1])
        sides = self.pixels * proportion, self.pixels / proportion
        return self._aspect_side(sides[0]), self._aspect_side(sides[1])

    def _aspect_side(self, side: float) -> int:
        longest = self.pixels**2 // MULTIPLE  # If the other side is MULTIPLE.
        return min(max(round(side / MULTIPLE) * MULTIPLE, MULTIPLE), longest)
