"""Large pictures piece by piece: strips side by side, and tiles that blend without a seam."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

GAUSSIAN_VARIANCE = 0.01
"""Of the blending weights, for a tile of side 1 (S3Diff's code)."""

Work = Callable[[slice, slice], Tensor]
"""What is made of a tile, given its rows and columns."""


def strips(length: int, size: int) -> list[slice]:
    """Spans of ``size`` one after another, the last of what is left."""
    return [slice(start, min(start + size, length)) for start in range(0, length, size)]


def spans(length: int, size: int, overlap: int) -> list[slice]:
    """Spans of ``size`` that cover ``length``, ``overlap`` shared by neighbours, more by the last.

    A length below ``size`` is one span.
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
    """Fill ``out`` (..., H, W) with what ``work`` makes of its tiles; the weights sum to 1.

    Args:
        out: Where the result goes.
        rows: Those of the tiles, all as many, in units.
        columns: Likewise.
        unit: How many rows or columns of ``out`` a unit is.
        work: The tile's result, given its rows and columns in units.
        on_tile: Called after each tile.
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
    """Of each span along one side: Gaussian, and summing to 1 where spans overlap."""
    size = unit * (parts[0].stop - parts[0].start)
    position = (torch.arange(size) + 0.5) / size - 0.5
    gaussian = torch.exp(-(position**2) / (2 * GAUSSIAN_VARIANCE))
    total = torch.zeros(unit * parts[-1].stop)
    for part in parts:
        total[enlarged(part, unit)] += gaussian
    return [gaussian / total[enlarged(part, unit)] for part in parts]


def enlarged(span: slice, unit: int) -> slice:
    """The same span where a unit of it is that many."""
    return slice(unit * span.start, unit * span.stop)
