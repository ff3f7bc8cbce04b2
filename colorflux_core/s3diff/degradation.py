"""DE-Net estimates blur and noise of an image (MM-RealSR, Mou et al. 2022; S3Diff, section 3.2)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..photos.color import unit_range
from .tiling import strips

HALO = 24
"""Context around a tile in pixels; even, and at least the receptive field's radius of 22."""


class ResidualBlock(nn.Module):
    """x + conv(relu(conv(x))), without normalization, for (N, C, H, W)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(F.relu(self.conv1(x), inplace=True))


class DegradationEstimator(nn.Module):
    """Two towers of the same architecture, one for blur and one for noise."""

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
        """Estimate the degrees of blur and noise, (B, 2) in [0, 1].

        The towers end in global average pooling, so the image is processed in tiles with enough
        context to make the feature sums equal to those of the full image.

        Args:
            rgb: Images (B, 3, H, W), float in [0, 1] or an integer dtype.
            tile: Side of a tile in pixels, an even number.
            on_tile: Called after each tile.
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
    """The span with ``HALO`` pixels of context on both sides."""
    return slice(max(span.start - HALO, 0), span.stop + HALO)


def _half(span: slice) -> slice:
    """The span's position in the half-resolution features of :func:`_wider`."""
    start = min(span.start, HALO) // 2
    return slice(start, start + -(-(span.stop - span.start) // 2))
