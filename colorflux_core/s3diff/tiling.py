"""Large pictures in tiles that blend into each other without a seam."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

GAUSSIAN_VARIANCE = 0.01
"""Of the blending weights, for a tile of side 1 (S3Diff's code)."""

Work = Callable[[slice, slice], Tensor]
"""What is made of a tile, given its rows and columns."""


def spans(length: int, tile: int, overlap: int = 0) -> list[slice]:
    """Spans that cover ``length``, all of size ``tile``, or of ``length`` if that is shorter.

    Neighbours share at least ``overlap``. Without one they share nothing, and the last is shorter.
    """
    if overlap == 0:
        return [slice(start, min(start + tile, length)) for start in range(0, length, tile)]
    last = max(length - tile, 0)
    starts = [*range(0, last, tile - overlap), last]
    return [slice(start, min(start + tile, length)) for start in starts]


def blend(out: Tensor, tile: int, overlap: int, work: Work, factor: int = 1) -> Tensor:
    """Fill ``out`` (..., H, W) with what ``work`` makes of its tiles; the weights sum to 1.

    Args:
        out: Where the result goes.
        tile: Side of a tile, before ``work`` makes it ``factor`` times larger.
        overlap: What neighbours share at least, likewise.
        work: The tile's result, given its rows and columns in what is cut.
        factor: How much larger ``out`` is than what is cut.
    """
    out.zero_()
    height, width = (side // factor for side in out.shape[-2:])
    down, across = _profiles(height, tile, overlap, factor), _profiles(width, tile, overlap, factor)
    for rows, row_weights in zip(spans(height, tile, overlap), down, strict=True):
        for columns, column_weights in zip(spans(width, tile, overlap), across, strict=True):
            part = work(rows, columns)
            weights = (row_weights[:, None] * column_weights).to(part.device)
            place = out[..., enlarged(rows, factor), enlarged(columns, factor)]
            place += (part * weights).to(place)
    return out


def _profiles(length: int, tile: int, overlap: int, factor: int) -> list[Tensor]:
    """The weights of each span along one side, Gaussian, summing to 1 where spans overlap."""
    parts = [enlarged(span, factor) for span in spans(length, tile, overlap)]
    side = parts[0].stop - parts[0].start
    position = (torch.arange(side) + 0.5) / side - 0.5
    gaussian = torch.exp(-(position**2) / (2 * GAUSSIAN_VARIANCE))
    total = torch.zeros(factor * length)
    for part in parts:
        total[part] += gaussian
    return [gaussian / total[part] for part in parts]


def enlarged(span: slice, factor: int) -> slice:
    """The same span where everything is ``factor`` times larger."""
    return slice(factor * span.start, factor * span.stop)
