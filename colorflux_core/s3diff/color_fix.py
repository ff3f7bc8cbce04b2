"""The scan's own colors under the restored detail, strip by strip (StableSR; S3Diff's code)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from .options import ColorFix
from .tiling import spans

LEVELS = 5
HALO = 2**LEVELS - 1
"""Pixels that the coarsest wavelet level sees to each side."""

STRIP_ROWS = 256

Strip = Callable[[slice], Tensor]
"""These rows of a picture, (..., 3, rows, W)."""


def fix_colors(restored: Tensor, original: Strip, method: ColorFix) -> Tensor:
    """Give ``restored`` (..., 3, H, W), in place, the colors of an original of the same size.

    "wavelet" takes all that is coarser than 32 pixels from the original, "adain" only each
    channel's mean and spread, "none" nothing.
    """
    height = restored.shape[-2]
    if method == "adain":
        _same_statistics(restored, original)
    elif method == "wavelet":
        above = restored[..., :0, :]
        for rows in spans(height, STRIP_ROWS):
            wide = slice(max(rows.start - HALO, 0), min(rows.stop + HALO, height))
            # What lies above has been given its colors already: keep it as it was.
            strip = torch.cat([above, restored[..., rows.start : wide.stop, :]], dim=-2)
            above = strip[..., : rows.stop - wide.start, :][..., -HALO:, :].clone()
            inner = slice(rows.start - wide.start, rows.stop - wide.start)
            coarse = _coarse(original(wide) - strip)[..., inner, :]
            restored[..., rows, :] += coarse
    return restored.clamp_(0, 1)


def _coarse(image: Tensor) -> Tensor:
    """All that is left after five levels of the a trous wavelet's smoothing."""
    kernel = image.new_tensor([0.25, 0.5, 0.25])
    channels = image.flatten(0, -3)[:, None]
    for level in range(LEVELS):
        step = 2**level
        padded = F.pad(channels, (step, step, step, step), mode="replicate")
        rows = F.conv2d(padded, kernel.view(1, 1, 3, 1), dilation=(step, 1))
        channels = F.conv2d(rows, kernel.view(1, 1, 1, 3), dilation=(1, step))
    return channels.reshape(image.shape)


def _same_statistics(restored: Tensor, original: Strip) -> None:
    mean, spread = _moments(lambda rows: restored[..., rows, :], restored.shape[-2])
    target_mean, target_spread = _moments(original, restored.shape[-2])
    restored.sub_(mean).mul_(target_spread / spread).add_(target_mean)


def _moments(picture: Strip, height: int) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each channel, (..., 3, 1, 1)."""
    count, total, squares = 0, torch.tensor(0.0), torch.tensor(0.0)
    for rows in spans(height, STRIP_ROWS):
        strip = picture(rows).double()
        count += strip.shape[-2] * strip.shape[-1]
        total = total + strip.sum(dim=(-2, -1), keepdim=True)
        squares = squares + (strip**2).sum(dim=(-2, -1), keepdim=True)
    mean = total / count
    variance = (squares - count * mean**2) / max(count - 1, 1)
    return mean.float(), (variance.clamp(min=0) + 1e-5).sqrt().float()
