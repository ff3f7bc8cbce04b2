"""Chroma changes without a luma change: in space (bleeding) or in time (flicker)."""

from __future__ import annotations

from torch import Tensor

from .planes import differences, length

EDGE = 0.02
"""Luma change, in [0, 1], from which a chroma change is expected: five 8-bit levels."""


def bleeding(chroma: Tensor, luma: Tensor) -> Tensor:
    """Mean chroma gradient where the luma has no edge.

    Args:
        chroma: CbCr (..., 2, H, W) of the result, in [-0.5, 0.5].
        luma: Luma (..., 1, H, W) in [0, 1] with the true edges, such as the gray input's.

    Returns:
        (...), the mean over the pixels without an edge; 0 if there are none.
    """
    return _where_still(length(differences(chroma)), length(differences(luma)))


def excess_bleeding(chroma: Tensor, luma: Tensor, true_chroma: Tensor) -> Tensor:
    """:func:`bleeding` in excess of the true chroma's own gradient at the same pixel: (...)."""
    change = length(differences(chroma)) - length(differences(true_chroma))
    return _where_still(change.clamp(min=0), length(differences(luma)))


def flicker(chroma_change: Tensor, luma_change: Tensor) -> Tensor:
    """Mean chroma change between two frames where the luma of the gray input is constant.

    Args:
        chroma_change: CbCr difference (..., 2, H, W) between two frames of the result.
        luma_change: Luma difference (..., 1, H, W) between the same frames of the input.

    Returns:
        (...), the mean over the pixels with constant luma; 0 if there are none.
    """
    return _where_still(length(chroma_change), luma_change.abs())


def _where_still(change: Tensor, luma_change: Tensor) -> Tensor:
    still = (luma_change < EDGE).to(change)
    total = (change * still).sum(dim=(-3, -2, -1))
    return total / still.sum(dim=(-3, -2, -1)).clamp(min=1)
