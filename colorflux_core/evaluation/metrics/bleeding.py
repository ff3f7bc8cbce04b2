"""Color that moves where the luma does not: across a surface (bleeding), or in time (flicker)."""

from __future__ import annotations

from torch import Tensor

from .planes import differences, length

EDGE = 0.02
"""Change of luma, in [0, 1], that may bring a change of color with it: five 8-bit levels."""


def bleeding(chroma: Tensor, luma: Tensor) -> Tensor:
    """Mean change of chroma to the neighbours, where the luma has no edge: (...).

    Args:
        chroma: CbCr (..., 2, H, W) of what is judged.
        luma: (..., 1, H, W) of what has the true edges, such as the gray input.

    The mean is over the pixels without an edge; without such pixels it is 0.
    """
    return _where_still(length(differences(chroma)), length(differences(luma)))


def excess_bleeding(chroma: Tensor, luma: Tensor, true_chroma: Tensor) -> Tensor:
    """:func:`bleeding` beyond the change that the true chroma has at the same pixel: (...)."""
    change = length(differences(chroma)) - length(differences(true_chroma))
    return _where_still(change.clamp(min=0), length(differences(luma)))


def flicker(chroma_change: Tensor, luma_change: Tensor) -> Tensor:
    """Mean change of chroma between two frames, where the luma of the gray frames stays: (...).

    Args:
        chroma_change: From a frame to the next of what is judged, CbCr (..., 2, H, W).
        luma_change: Of the input frames, (..., 1, H, W).

    The mean is over the pixels that stay; without such pixels it is 0.
    """
    return _where_still(length(chroma_change), luma_change.abs())


def _where_still(change: Tensor, luma_change: Tensor) -> Tensor:
    still = (luma_change < EDGE).to(change)
    total = (change * still).sum(dim=(-3, -2, -1))
    return total / still.sum(dim=(-3, -2, -1)).clamp(min=1)
