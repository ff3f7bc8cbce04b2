"""How near colors are to a true photo's: measures over photos (N, 3, H, W) in [0, 1]."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from colorflux_core.color import colorfulness, grayscale, luminance, rgb_to_ycbcr

FLAT = 0.02
SKIN_CB, SKIN_CR = (77 / 255, 127 / 255), (133 / 255, 173 / 255)
"""Chai and Ngan's (1999) box of skin in CbCr, on a scale from 0 with gray at 128 / 255."""
LEAST_SKIN = 0.03
DARK_SKIN = 0.4
"""Mean luma below which skin counts as dark."""


@dataclass(frozen=True)
class Scores:
    """Of results beside the true photos.

    Attributes:
        over_gray: chroma PSNR over all photos together, in dB above the gray photos'.
        interval: half the width of its 95 % interval, by a bootstrap over the photos.
        correlation: of the chroma of all photos together.
        colorfulness: mean, over the true photos' mean.
        blotches: chroma change where the true luma is flat, over the true photos'.
        seed: mean correlation of the red-chroma maps of different photos, less what it is where
            each photo has a seed of its own; 0 for what has no seed.
    """

    over_gray: float
    interval: float
    correlation: float
    colorfulness: float
    blotches: float
    seed: float


def scores(rgb: Tensor, true: Tensor, own_seeds: Tensor | None = None, draws: int = 500) -> Scores:
    """``own_seeds`` are the same results, of another seed for each photo."""
    errors = (chroma(rgb) - chroma(true)).square().mean(dim=(1, 2, 3))
    gray = (chroma(grayscale(true)) - chroma(true)).square().mean(dim=(1, 2, 3))
    drawn = torch.randint(len(true), (draws, len(true)), generator=torch.Generator().manual_seed(0))
    bootstrap = decibels(gray[drawn].mean(1) / errors[drawn].mean(1))
    low, high = bootstrap.quantile(torch.tensor([0.025, 0.975])).tolist()
    return Scores(
        decibels(gray.mean() / errors.mean()).item(),
        (high - low) / 2,
        correlation(chroma(rgb), chroma(true)) if chroma(rgb).std() > 1e-4 else 0.0,
        (colorfulness(rgb).mean() / colorfulness(true).mean()).item(),
        blotches(rgb, true),
        0.0 if own_seeds is None else red_likeness(rgb) - red_likeness(own_seeds),
    )


def decibels(ratio: Tensor) -> Tensor:
    return 10 * ratio.log10()


def chroma(rgb: Tensor) -> Tensor:
    return rgb_to_ycbcr(rgb)[..., 1:, :, :]


def gradient(planes: Tensor) -> Tensor:
    """Size of the change to the right and below, (N, 1, H - 1, W - 1), over all planes."""
    right = planes[..., :-1, 1:] - planes[..., :-1, :-1]
    below = planes[..., 1:, :-1] - planes[..., :-1, :-1]
    return (right.square() + below.square()).sum(1, keepdim=True).sqrt()


def blotches(rgb: Tensor, true: Tensor) -> float:
    """Mean chroma change where the true luma has no edge, over the true photos' own."""
    flat = gradient(luminance(true)) < FLAT
    return (gradient(chroma(rgb))[flat].mean() / gradient(chroma(true))[flat].mean()).item()


def correlation(one: Tensor, other: Tensor) -> float:
    return torch.corrcoef(torch.stack([one.flatten(), other.flatten()]))[0, 1].item()


def red_likeness(rgb: Tensor) -> float:
    """Mean correlation of each two photos' red-chroma maps.

    Not 0 without a seed: in means the middle is warm and the top blue, so those of the regression
    head correlate by 0.5, those of true photos by 0.02.
    """
    maps = chroma(rgb)[:, 1]
    centred = maps.flatten(1) - maps.flatten(1).mean(1, keepdim=True)
    unit = centred / centred.norm(dim=1, keepdim=True).clamp_min(1e-6)
    pairs = len(maps) * (len(maps) - 1)
    return ((unit.sum(0).square().sum() - unit.square().sum()) / pairs).item()


@dataclass(frozen=True)
class Skin:
    """Mean hue of the skin in photos that show some: share within 15 degrees of the truth."""

    light: float
    light_photos: int
    dark: float
    dark_photos: int


def skin(rgb: Tensor, true: Tensor) -> Skin:
    """Of photos with people; where there is skin is seen in the true photos."""
    near: dict[bool, list[bool]] = {True: [], False: []}
    for result, photo in zip(rgb, true, strict=True):
        where = skin_mask(photo)
        if where.float().mean() < LEAST_SKIN:
            continue
        angles = [hue(chroma(picture)[:, where].mean(1)) for picture in (result, photo)]
        off = abs((angles[0] - angles[1] + 180) % 360 - 180)
        dark = luminance(photo)[0][where].mean().item() < DARK_SKIN
        near[dark].append(off <= 15)
    light, dark_ones = near[False], near[True]
    return Skin(share(light), len(light), share(dark_ones), len(dark_ones))


def skin_mask(photo: Tensor) -> Tensor:
    """(H, W): where a color photo (3, H, W) may show skin."""
    cb, cr = chroma(photo) + 128 / 255
    light = luminance(photo)[0] > 0.15
    return (
        light
        & (cb > SKIN_CB[0])
        & (cb < SKIN_CB[1] - 8 / 255)
        & (cr > SKIN_CR[0] + 4 / 255)
        & (cr < SKIN_CR[1])
    )


def hue(cbcr: Tensor) -> float:
    """Angle of a chroma (2,) in degrees."""
    return torch.atan2(cbcr[1], cbcr[0]).rad2deg().item()


def share(hits: list[bool]) -> float:
    return sum(hits) / len(hits) if hits else float("nan")
