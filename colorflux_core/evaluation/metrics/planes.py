"""The color planes that metrics work on, and basic operations on them."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ...photos.color import rgb_to_ycbcr

FLAT = 1e-4
"""Planes with a lower standard deviation count as constant: a fortieth of an 8-bit level is only
rounding."""


class Planes(NamedTuple):
    """(..., C, H, W), float32: RGB in [0, 1], BT.601 luma in [0, 1], CbCr in [-0.5, 0.5]."""

    rgb: Tensor
    luma: Tensor
    chroma: Tensor


def planes(rgb: Tensor) -> Planes:
    """Split RGB (..., 3, H, W) in [0, 1] into :class:`Planes`."""
    luma, chroma = rgb_to_ycbcr(rgb).split([1, 2], dim=-3)
    return Planes(rgb, luma, chroma)


def mean(planes: Tensor) -> Tensor:
    """Mean over channels and pixels: (..., C, H, W) to (...)."""
    return planes.mean(dim=(-3, -2, -1))


def differences(planes: Tensor) -> Tensor:
    """Forward differences to the right and down, (..., C, H, W) to (..., 2 C, H, W); 0 at edges."""
    *batch, channels, height, width = planes.shape
    found = planes.new_empty(*batch, 2 * channels, height, width)
    right, below = found.chunk(2, dim=-3)
    right[..., -1], below[..., -1, :] = 0, 0
    torch.sub(planes[..., 1:], planes[..., :-1], out=right[..., :-1])
    torch.sub(planes[..., 1:, :], planes[..., :-1, :], out=below[..., :-1, :])
    return found


def length(planes: Tensor) -> Tensor:
    """Euclidean norm over the channels: (..., C, H, W) to (..., 1, H, W)."""
    return planes.square().sum(dim=-3, keepdim=True).sqrt()


def correlation(one: Tensor, other: Tensor) -> Tensor:
    """Pearson correlation of two images (..., C, H, W), planes centered and then pooled: (...).

    1 for two constant images, 0 if only one is constant.
    """
    one, other = (planes - planes.mean(dim=(-2, -1), keepdim=True) for planes in (one, other))
    variance, other_variance = mean(one.square()), mean(other.square())
    flat, other_flat = variance < FLAT**2, other_variance < FLAT**2
    scale = (variance * other_variance).sqrt().masked_fill(flat | other_flat, 1)
    related = (mean(one * other) / scale).clamp(-1, 1)
    return torch.where(flat | other_flat, (flat & other_flat).to(related), related)
