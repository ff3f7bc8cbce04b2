"""Process large images in parts: adjacent strips, and overlapping tiles that are blended."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

GAUSSIAN_VARIANCE = 0.01
"""Variance of the blending weights, relative to a tile side of 1 (as in S3Diff's code)."""

Work = Callable[[slice, slice], Tensor]
"""Computes the result of a tile from its rows and columns."""


def strips(length: int, size: int) -> list[slice]:
    """Split ``length`` into adjacent spans of ``size``; the last may be shorter."""
    return [slice(start, min(start + size, length)) for start in range(0, length, size)]


def spans(length: int, size: int, overlap: int) -> list[slice]:
    """Cover ``length`` with spans of ``size`` that overlap by ``overlap``, the last two by more.

    A length of at most ``size`` is one span.
    """
    last = max(length - size, 0)
    starts = [*range(0, last, size - overlap), last]
    return [slice(start, min(start + size, length)) for start in starts]


def blend(
    out: Tensor,
    rows: Sequence[slice],
    columns: Sequence[slice],
    unit: int,
    work: Work,
    on_tile: Callable[[], None] = lambda: None,
) -> Tensor:
    """Fill ``out`` (..., H, W) with overlapping tiles, blended with Gaussian weights.

    Args:
        out: The output, overwritten.
        rows: Row spans of the tiles in units, all of the same length.
        columns: Column spans, likewise.
        unit: Rows or columns of ``out`` per unit.
        work: Computes a tile's result from its rows and columns in units.
        on_tile: Called after each tile.

    Returns:
        ``out``.
    """
    out.zero_()
    down, across = _weights(rows, unit), _weights(columns, unit)
    for height, row_weights in zip(rows, down, strict=True):
        for width, column_weights in zip(columns, across, strict=True):
            part = work(height, width)
            weights = (row_weights[:, None] * column_weights).to(part.device)
            place = out[..., enlarged(height, unit), enlarged(width, unit)]
            place += (part * weights).to(place)
            on_tile()
    return out


def _weights(parts: Sequence[slice], unit: int) -> list[Tensor]:
    """Gaussian weights of each span along one dimension; overlapping weights sum to 1."""
    size = unit * (parts[0].stop - parts[0].start)
    position = (torch.arange(size) + 0.5) / size - 0.5
    gaussian = torch.exp(-(position**2) / (2 * GAUSSIAN_VARIANCE))
    total = torch.zeros(unit * parts[-1].stop)
    for part in parts:
        total[enlarged(part, unit)] += gaussian
    return [gaussian / total[enlarged(part, unit)] for part in parts]


def enlarged(span: slice, unit: int) -> slice:
    """Scale a span by ``unit``."""
    return slice(unit * span.start, unit * span.stop)
