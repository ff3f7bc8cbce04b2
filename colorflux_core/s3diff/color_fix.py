"""Transfer the scan's colors to the restored image (as in StableSR and S3Diff), in strips."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from ..photos.color import luminance
from .options import ColorFix
from .tiling import strips

LEVELS = 5
HALO = 2**LEVELS - 1
"""Receptive field of the coarsest wavelet level, in pixels to each side."""

STRIP_PIXELS = 2**20

Strip = Callable[[slice], Tensor]
"""Returns the given rows of an image, (N, 3, rows, W)."""


def fix_colors(restored: Tensor, original: Strip, method: ColorFix) -> Tensor:
    """Transfer the colors of an original of the same size to ``restored`` (N, 3, H, W), in place.

    "wavelet" takes everything coarser than 32 pixels from the original, "adain" only the mean and
    standard deviation of each channel, "none" nothing. The result is clamped to [0, 1].
    """
    if method == "adain":
        _same_statistics(restored, original)
    elif method == "wavelet":
        _same_coarse_part(restored, original)
    return restored.clamp_(0, 1)


def make_gray(rgb: Tensor) -> Tensor:
    """Replace RGB (N, 3, H, W) in place by its luma in three equal channels."""
    for rows in _strips(rgb):
        rgb[..., rows, :] = luminance(rgb[..., rows, :])
    return rgb


def _strips(picture: Tensor) -> list[slice]:
    """Row slices of about ``STRIP_PIXELS`` pixels, at least as many rows as the halo."""
    height, width = picture.shape[-2:]
    return strips(height, max(STRIP_PIXELS // width - 2 * HALO, HALO))


def _same_coarse_part(restored: Tensor, original: Strip) -> None:
    above, change = slice(0, 0), restored[..., :0, :]
    for rows in _strips(restored):
        wide = slice(max(rows.start - HALO, 0), min(rows.stop + HALO, restored.shape[-2]))
        inner = slice(rows.start - wide.start, rows.stop - wide.start)
        next_change = _coarse(original(wide) - restored[..., wide, :])[..., inner, :]
        # Applied one strip late, because the next strip reads these rows unchanged.
        restored[..., above, :] += change
        above, change = rows, next_change
    restored[..., above, :] += change


def _coarse(image: Tensor) -> Tensor:
    """The low-pass residual of the five-level a trous wavelet transform."""
    for step in (2**level for level in range(LEVELS)):
        for dim, margins in ((-2, (0, 0, step, step)), (-1, (step, step, 0, 0))):
            padded = F.pad(image, margins, mode="replicate")
            before, here, after = (
                padded.narrow(dim, start, image.shape[dim]) for start in (0, step, 2 * step)
            )
            image = (before + after).mul_(0.25).add_(here, alpha=0.5)
    return image


def _same_statistics(restored: Tensor, original: Strip) -> None:
    parts = _strips(restored)
    mean, spread = _moments(lambda rows: restored[..., rows, :], parts)
    target_mean, target_spread = _moments(original, parts)
    restored.sub_(mean).mul_(target_spread / spread).add_(target_mean)


def _moments(picture: Strip, parts: list[slice]) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each channel, (N, 3, 1, 1)."""
    count, total, squares = 0, torch.tensor(0.0), torch.tensor(0.0)
    for rows in parts:
        strip = picture(rows).double()
        count += strip.shape[-2] * strip.shape[-1]
        total = total + strip.sum(dim=(-2, -1), keepdim=True)
        squares = squares + (strip**2).sum(dim=(-2, -1), keepdim=True)
    mean = total / count
    variance = (squares - count * mean**2) / max(count - 1, 1)
    return mean.float(), (variance.clamp(min=0) + 1e-5).sqrt().float()
