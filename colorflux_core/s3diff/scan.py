"""Resize a scan lazily, region by region."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..photos.color import unit_range
from .options import MULTIPLE


class EnlargedScan:
    """The scan at the result's size, reflection-padded right and below to a multiple of 64 pixels.

    Calling it with row and column slices computes that region, (N, 3, rows, columns) in [0, 1],
    with bilinear interpolation.
    """

    def __init__(self, rgb: Tensor, scale: float) -> None:
        self.rgb = rgb
        self.size = [max(1, round(scale * side)) for side in rgb.shape[-2:]]
        self.padded = [math.ceil(side / MULTIPLE) * MULTIPLE for side in self.size]

    def __call__(self, rows: slice, columns: slice) -> Tensor:
        positions = {-2: self._positions(-2, rows), -1: self._positions(-1, columns)}
        part = self.rgb
        for dim, position in positions.items():
            first, last = int(position.min()), math.ceil(position.max())
            part = part.narrow(dim, first, last + 1 - first)
            position -= first
        part = unit_range(part).float()
        for dim, position in positions.items():
            below, above = position.floor(), position.ceil()
            weight = position - below if dim == -1 else (position - below)[:, None]
            part = part.index_select(dim, below.long()).lerp(
                part.index_select(dim, above.long()), weight
            )
        return part

    def _positions(self, dim: int, span: slice) -> Tensor:
        """Sample positions in the scan for a span of the result along one dimension."""
        length, size = self.rgb.shape[dim], self.size[dim]
        period = max(2 * (size - 1), 1)
        target = torch.arange(span.start, span.stop) % period
        target = torch.minimum(target, period - target).clamp(max=size - 1)
        return ((target + 0.5) * (length / size) - 0.5).clamp(0, length - 1)
