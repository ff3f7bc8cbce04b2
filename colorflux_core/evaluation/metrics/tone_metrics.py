"""Brightness, contrast and clipping, which fading changes, from the luma (..., 1, H, W)."""

from __future__ import annotations

import torch
from torch import Tensor

from .planes import mean

DARK, BRIGHT = 2 / 255, 253 / 255
"""Luma at or beyond which a pixel counts as clipped, in [0, 1]."""

LEVELS = 256


def brightness(luma: Tensor) -> Tensor:
    """Mean luma, (...), in [0, 1]."""
    return mean(luma)


def contrast(luma: Tensor) -> Tensor:
    """Standard deviation of the luma, (...), in [0, 0.5]."""
    return luma.std(dim=(-3, -2, -1), correction=0)


def clipped_dark(luma: Tensor) -> Tensor:
    """Fraction of black pixels, (...)."""
    return mean((luma <= DARK).to(luma))


def clipped_bright(luma: Tensor) -> Tensor:
    """Fraction of white pixels, (...)."""
    return mean((luma >= BRIGHT).to(luma))


def luma_distance(luma: Tensor, true: Tensor) -> Tensor:
    """Wasserstein-1 distance between the 256-level luma histograms, (...), in [0, 1].

    This is the mean luma change per pixel that makes both histograms equal.
    """
    return (_cumulative(luma) - _cumulative(true)).abs().sum(dim=-1) / (LEVELS - 1)


def _cumulative(luma: Tensor) -> Tensor:
    """Fraction of pixels up to each level, (..., 256)."""
    level = (luma.flatten(-3) * (LEVELS - 1)).round().long().clamp(0, LEVELS - 1)
    counts = level.new_zeros(*level.shape[:-1], LEVELS)
    counts.scatter_add_(-1, level, torch.ones_like(level))
    return counts.cumsum(dim=-1) / level.shape[-1]
