"""Structure preservation: similarity of the luma to the gray input's or the truth's."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .planes import correlation, differences

WINDOW, SIGMA = 11, 1.5
C1, C2 = 0.01**2, 0.03**2

STRIP_ROWS = 32
"""Rows processed at a time, so that the smoothed planes stay in the CPU cache."""


def ssim(luma: Tensor, other: Tensor) -> Tensor:
    """Structural similarity (Wang et al. 2004) of lumas (..., 1, H, W) in [0, 1]: (...) in [-1, 1].

    Computed at full size with a Gaussian window of 11 pixels (sigma 1.5) and population variances,
    averaged over all windows inside the image. Sides below 11 pixels are padded by replication.
    """
    luma, other = _extended(luma), _extended(other)
    last = luma.shape[-2] - WINDOW + 1
    total = luma.new_zeros(luma.shape[:-3])
    for top in range(0, last, STRIP_ROWS):
        rows = slice(top, min(top + STRIP_ROWS, last) + WINDOW - 1)
        total += _similarity(luma[..., rows, :], other[..., rows, :]).sum(dim=(-3, -2, -1))
    return total / (last * (luma.shape[-1] - WINDOW + 1))


def _similarity(x: Tensor, y: Tensor) -> Tensor:
    """SSIM of each window of a strip, (..., 1, H - 10, W - 10)."""
    moments = torch.cat([x, y, x * x + y * y, x * y], dim=-3)
    mean_x, mean_y, squares, product = _smoothed(moments).split(1, dim=-3)
    means = mean_x * mean_y
    mean_squares = mean_x.square() + mean_y.square()
    structure = (2 * (product - means) + C2) / (squares - mean_squares + C2)
    return (2 * means + C1) / (mean_squares + C1) * structure


def _smoothed(planes: Tensor) -> Tensor:
    """Gaussian filter without padding. Adding taps is far faster than a one-channel convolution."""
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
    """Correlation of the luma gradients of two images (..., 1, H, W): (...) in [-1, 1].

    It does not depend on brightness or contrast. 1 for two constant images, 0 if only one is
    constant. After Penney et al. 1998, with both directions pooled.
    """
    return correlation(differences(luma), differences(other))
