"""Is it still the same picture? Of lumas (..., 1, H, W), to the gray input or to the truth."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .planes import correlation, differences

WINDOW, SIGMA = 11, 1.5
C1, C2 = 0.01**2, 0.03**2

STRIP_ROWS = 32
"""Worked on at a time, so that what is smoothed stays in the cache."""


def ssim(luma: Tensor, other: Tensor) -> Tensor:
    """Structural similarity (Wang et al. 2004), (...), in [-1, 1].

    At the pictures' own size, Gaussian window of 11 pixels and sigma 1.5, population variances, the
    mean over all windows that lie inside; sides below 11 are first extended by their edge pixels.
    """
    luma, other = _extended(luma), _extended(other)
    last = luma.shape[-2] - WINDOW + 1
    total = luma.new_zeros(luma.shape[:-3])
    for top in range(0, last, STRIP_ROWS):
        rows = slice(top, min(top + STRIP_ROWS, last) + WINDOW - 1)
        total += _similarity(luma[..., rows, :], other[..., rows, :]).sum(dim=(-3, -2, -1))
    return total / (last * (luma.shape[-1] - WINDOW + 1))


def _similarity(x: Tensor, y: Tensor) -> Tensor:
    """Of each window of a strip, (..., 1, H - 10, W - 10)."""
    moments = torch.cat([x, y, x * x + y * y, x * y], dim=-3)
    mean_x, mean_y, squares, product = _smoothed(moments).split(1, dim=-3)
    means = mean_x * mean_y
    mean_squares = mean_x.square() + mean_y.square()
    structure = (2 * (product - means) + C2) / (squares - mean_squares + C2)
    return (2 * means + C1) / (mean_squares + C1) * structure


def _smoothed(planes: Tensor) -> Tensor:
    """Under the window, where it fits. By taps: a convolution of one channel is far slower."""
    offsets = torch.arange(WINDOW) - WINDOW // 2
    weights = torch.softmax(-offsets.square() / (2 * SIGMA**2), dim=0).tolist()
    for dim in (-2, -1):
        kept = planes.shape[dim] - WINDOW + 1
        smoothed = weights[0] * planes.narrow(dim, 0, kept)
        for tap in range(1, WINDOW):
            smoothed.add_(planes.narrow(dim, tap, kept), alpha=weights[tap])
        planes = smoothed
    return planes


def _extended(luma: Tensor) -> Tensor:
    missing = [max(0, WINDOW - side) for side in (luma.shape[-1], luma.shape[-2])]
    if not any(missing):
        return luma
    padding = [part for m in missing for part in (m // 2, m - m // 2)]
    batch = luma.reshape(-1, *luma.shape[-3:])
    padded = F.pad(batch, padding, mode="replicate")
    return padded.reshape(*luma.shape[:-2], *padded.shape[-2:])


def gradient_correlation(luma: Tensor, other: Tensor) -> Tensor:
    """Of the differences between neighbouring pixels, to the right and downwards: (...).

    In [-1, 1], whatever the brightness and the contrast; 1 for two flat pictures, 0 for a flat and
    another one. After Penney et al. 1998, with both directions pooled.
    """
    return correlation(differences(luma), differences(other))
