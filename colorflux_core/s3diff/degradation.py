"""DE-Net: how blurred and how noisy a picture is (Mou et al. 2022, MM-RealSR; S3Diff 3.2)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..photos.color import unit_range
from .tiling import strips

HALO = 24
"""Pixels, an even number of them: no feature sees farther than 22."""


class ResidualBlock(nn.Module):
    """x + conv(relu(conv(x))), without normalization."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(F.relu(self.conv1(x), inplace=True))


class DegradationEstimator(nn.Module):
    """Two towers of the same shape, one for blur and one for noise."""

    def __init__(self, width: int = 64, towers: int = 2) -> None:
        super().__init__()
        self.conv_first = nn.ModuleList(nn.Conv2d(3, width, 3, padding=1) for _ in range(towers))
        self.body = nn.ModuleList(
            nn.Sequential(
                *(ResidualBlock(width) for _ in range(6)),
                nn.Conv2d(width, 2 * width, 3, stride=2, padding=1),
                *(ResidualBlock(2 * width) for _ in range(2)),
            )
            for _ in range(towers)
        )
        self.fc_degree = nn.ModuleList(
            nn.Sequential(nn.Linear(2 * width, 512), nn.ReLU(), nn.Linear(512, 1), nn.Sigmoid())
            for _ in range(towers)
        )

    def forward(
        self, rgb: Tensor, tile: int = 512, on_tile: Callable[[], None] = lambda: None
    ) -> Tensor:
        """Degrees of blur and noise (B, 2) in [0, 1] of pictures (B, 3, H, W) of any depth.

        The towers end in a mean over the picture, so it is looked at in tiles of ``tile`` pixels,
        an even number of them, each with enough around it that the sum of the features is that of
        the whole picture. ``on_tile`` is called after each.
        """
        height, width = rgb.shape[-2:]
        parameter = next(self.parameters())
        sums = [parameter.new_zeros(len(rgb), 2 * len(parameter)) for _ in self.body]
        for rows in strips(height, tile):
            for columns in strips(width, tile):
                seen = unit_range(rgb[..., _wider(rows), _wider(columns)]).to(parameter)
                inner = (..., _half(rows), _half(columns))
                for tower, (first, body) in enumerate(zip(self.conv_first, self.body, strict=True)):
                    sums[tower] += body(first(seen))[inner].sum(dim=(-2, -1))
                on_tile()
        cells = -(-height // 2) * -(-width // 2)
        degrees = [head(total / cells) for head, total in zip(self.fc_degree, sums, strict=True)]
        return torch.cat(degrees, dim=-1)


def _wider(span: slice) -> slice:
    return slice(max(span.start - HALO, 0), span.stop + HALO)


def _half(span: slice) -> slice:
    """The span's place among the features of :func:`_wider`, which are at half resolution."""
    start = min(span.start, HALO) // 2
    return slice(start, start + -(-(span.stop - span.start) // 2))
