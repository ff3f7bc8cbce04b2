"""Color error against the truth: CIEDE2000, and PSNR and correlation of the chroma (CbCr)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .planes import correlation, mean

# sRGB to XYZ (IEC 61966-2-1, Rec. 709 primaries). Each row is divided by its sum, the D65 white
# point, so that gray has no chroma.
TO_XYZ = (
    (0.412453, 0.357580, 0.180423),
    (0.212671, 0.715160, 0.072169),
    (0.019334, 0.119193, 0.950227),
)

POINT = 0.04045
"""The sRGB value where the transfer function changes from linear to a power."""

STRIP_PIXELS = 2**16
"""Pixels processed at a time, so that the many planes of CIEDE2000 stay in the CPU cache."""

ROUND_TURN = math.tau * (1 + 1e-6)
"""A full turn in radians, with a margin so that rounding keeps opposite hues half a turn apart."""

NEGLIGIBLE = 40.0
"""exp(-40) is negligible here. Much smaller numbers are denormal and slow."""

LEAST_SQUARED_ERROR = 1e-6
"""60 dB, about the error of rounding to 8 bits. Smaller errors are clamped to this."""


def lab(rgb: Tensor) -> Tensor:
    """Convert sRGB (..., 3, H, W) in [0, 1] to CIE L*a*b* under D65, L* in [0, 100]."""
    # Both curves are linear up to a point, then a power. torch.where is ten times slower.
    linear = ((rgb.clamp(min=POINT) + 0.055) / 1.055).pow(2.4)
    linear += (rgb.clamp(max=POINT) - POINT) / 12.92
    red, green, blue = linear.unbind(dim=-3)
    x, y, z = (_cube_root((r * red + g * green + b * blue) / (r + g + b)) for r, g, b in TO_XYZ)
    return torch.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], dim=-3)


def _cube_root(ratio: Tensor) -> Tensor:
    point = (6 / 29) ** 3
    return ratio.clamp(min=point).pow(1 / 3) + (ratio.clamp(max=point) - point) * (841 / 108)


def ciede2000(lab: Tensor, other: Tensor) -> Tensor:
    """CIEDE2000 difference of L*a*b* colors, (..., 3, H, W) to (..., 1, H, W).

    Sharma, Wu and Dalal 2005, equations 2 to 22, with kL = kC = kH = 1. The hue of a gray color is
    arbitrary, because it has no weight in any term.
    """
    lightness, a, b = lab.unbind(dim=-3)
    other_lightness, other_a, other_b = other.unbind(dim=-3)

    stretch = 1.5 - 0.5 * _chroma_weight((torch.hypot(a, b) + torch.hypot(other_a, other_b)) / 2)
    a, other_a = stretch * a, stretch * other_a
    chroma, other_chroma = torch.hypot(a, b), torch.hypot(other_a, other_b)
    hue, other_hue = torch.atan2(b, a) % math.tau, torch.atan2(other_b, other_a) % math.tau

    turn = other_hue - hue
    turn = turn - math.tau * (turn / ROUND_TURN).round()
    by_lightness = other_lightness - lightness
    by_chroma = other_chroma - chroma
    by_hue = 2 * (chroma * other_chroma).sqrt() * (turn / 2).sin()

    mean_lightness = (lightness + other_lightness) / 2
    mean_chroma = (chroma + other_chroma) / 2
    mean_hue = hue + turn / 2
    t = (
        1
        - 0.17 * (mean_hue - math.radians(30)).cos()
        + 0.24 * (2 * mean_hue).cos()
        + 0.32 * (3 * mean_hue + math.radians(6)).cos()
        - 0.20 * (4 * mean_hue - math.radians(63)).cos()
    )
    from_middle = (mean_lightness - 50).square()
    by_lightness = by_lightness / (1 + 0.015 * from_middle / (20 + from_middle).sqrt())
    by_chroma = by_chroma / (1 + 0.045 * mean_chroma)
    by_hue = by_hue / (1 + 0.015 * mean_chroma * t)

    from_blue = (mean_hue.rad2deg() % 360 - 275) / 25
    nearness = (-from_blue.square().clamp(max=NEGLIGIBLE)).exp()
    rotation = -2 * _chroma_weight(mean_chroma) * (math.radians(60) * nearness).sin()
    squared = by_lightness.square() + by_chroma.square() + by_hue.square()
    return (squared + rotation * by_chroma * by_hue).clamp(min=0).sqrt().unsqueeze(-3)


def _chroma_weight(chroma: Tensor) -> Tensor:
    """sqrt(C^7 / (C^7 + 25^7)): 0 for low chroma, close to 1 for high chroma."""
    ratio = (chroma / 25).clamp(min=math.exp(-NEGLIGIBLE / 7))
    seventh = (ratio * ratio * ratio).square() * ratio
    return (seventh / (seventh + 1)).sqrt()


def mean_ciede2000(rgb: Tensor, true: Tensor) -> Tensor:
    """Mean CIEDE2000 over the pixels of two sRGB images (..., 3, H, W) in [0, 1]: (...)."""
    height, width = rgb.shape[-2:]
    rows = max(1, STRIP_PIXELS // width)
    total = rgb.new_zeros(rgb.shape[:-3])
    for one, other in zip(rgb.split(rows, dim=-2), true.split(rows, dim=-2), strict=True):
        total += ciede2000(lab(one), lab(other)).sum(dim=(-3, -2, -1))
    return total / (height * width)


def chroma_psnr(chroma: Tensor, true: Tensor) -> Tensor:
    """PSNR in dB of CbCr (..., 2, H, W) in [-0.5, 0.5], with a peak of 1: (...).

    Clamped to 60 dB, so that exact results do not make the mean over images infinite.
    """
    error = mean((chroma - true).square())
    return -10 * error.clamp(min=LEAST_SQUARED_ERROR).log10()


def chroma_correlation(chroma: Tensor, true: Tensor) -> Tensor:
    """Correlation of CbCr (..., 2, H, W), in [-1, 1]: (...). It does not depend on saturation."""
    return correlation(chroma, true)
