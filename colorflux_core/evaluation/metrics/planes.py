"""A picture as the metrics look at it: in color, its luma and its chroma."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ...photos.color import rgb_to_ycbcr

FLAT = 1e-4
"""Planes whose standard deviation, in [0, 1], is below this vary in nothing: a fortieth of an 8-bit
level is rounding."""


class Planes(NamedTuple):
    """(..., C, H, W), float32: RGB in [0, 1], BT.601 luma in [0, 1], CbCr in [-0.5, 0.5]."""

    rgb: Tensor
    luma: Tensor
    chroma: Tensor


def planes(rgb: Tensor) -> Planes:
    luma, chroma = rgb_to_ycbcr(rgb).split([1, 2], dim=-3)
    return Planes(rgb, luma, chroma)


def mean(planes: Tensor) -> Tensor:
    """Over channels and pixels: (..., C, H, W) to (...)."""
    return planes.mean(dim=(-3, -2, -1))


def differences(planes: Tensor) -> Tensor:
    """To the right and downwards neighbour, (..., C, H, W) to (..., 2 C, H, W); 0 at the edges."""
    *batch, channels, height, width = planes.shape
    found = planes.new_empty(*batch, 2 * channels, height, width)
    right, below = found.chunk(2, dim=-3)
    right[..., -1], below[..., -1, :] = 0, 0
    torch.sub(planes[..., 1:], planes[..., :-1], out=right[..., :-1])
    torch.sub(planes[..., 1:, :], planes[..., :-1, :], out=below[..., :-1, :])
    return found


def length(planes: Tensor) -> Tensor:
    """Of each pixel's vector: (..., C, H, W) to (..., 1, H, W)."""
    return planes.square().sum(dim=-3, keepdim=True).sqrt()


def correlation(one: Tensor, other: Tensor) -> Tensor:
    """Pearson's, of pictures (..., C, H, W), each plane about its own mean and all pooled: (...).

    1 for two flat pictures, 0 for a flat and another one.
    """
    one, other = (planes - planes.mean(dim=(-2, -1), keepdim=True) for planes in (one, other))
    variance, other_variance = mean(one.square()), mean(other.square())
    flat, other_flat = variance < FLAT**2, other_variance < FLAT**2
    scale = (variance * other_variance).sqrt().masked_fill(flat | other_flat, 1)
    related = (mean(one * other) / scale).clamp(-1, 1)
    return torch.where(flat | other_flat, (flat & other_flat).to(related), related)
