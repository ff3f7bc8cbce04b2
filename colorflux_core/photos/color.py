"""Luminance, colorfulness, saturation and fading as in the paper, all on sRGB values as stored."""

from __future__ import annotations

import itertools
import random
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import torch
import torch.nn.functional as F
from PIL import Image, ImageEnhance
from torch import Tensor

from ..errors import ColorFluxError

RED, GREEN, BLUE = 0.299, 0.587, 0.114  # ITU-R BT.601 luma

NOTICEABLE_COLOR = 5.0
"""The colorfulness from which :func:`tone` detects color, a third of "slightly colorful"."""


class NotFinite(ColorFluxError):
    """A picture has NaN or infinite values."""


def require_rgb(rgb: object, what: str = "The photo") -> None:
    """Raise ColorFluxError unless ``rgb`` is one RGB picture: a tensor (3, H, W).

    Its samples are uint8, uint16, or floating point in [0, 1]; small excess is allowed.
    """
    if not isinstance(rgb, Tensor):
        raise ColorFluxError(
            f"{what} is a {type(rgb).__name__}: give a torch tensor (3, H, W); torch.from_numpy "
            f"makes one of an array."
        )
    if rgb.ndim != 3 or rgb.shape[0] != 3 or 0 in rgb.shape:
        shape = "x".join(map(str, rgb.shape))
        raise ColorFluxError(f"{what} has the shape {shape}: give 3 x height x width.")
    if not rgb.is_floating_point():
        if rgb.dtype not in (torch.uint8, torch.uint16):
            raise ColorFluxError(f"{what} is {rgb.dtype}: give uint8, uint16 or floats in [0, 1].")
        return
    require_finite(rgb, what)
    if rgb.max() > 2 or rgb.min() < -1:
        raise ColorFluxError(f"{what} is not in [0, 1]: divide it by 255, or give uint8.")


def require_finite(image: Tensor, what: str) -> None:
    """Raise NotFinite, a ColorFluxError, for NaN and infinite values."""
    if not all(bool(channel.isfinite().all()) for channel in image.flatten(0, -3)):
        raise NotFinite(f"{what} has NaN or infinite values: try the precision float32.")


def unit_range(image: Tensor) -> Tensor:
    """Integer samples (uint8, uint16) as float32 in [0, 1]; floating-point ones are unchanged."""
    if image.is_floating_point():
        return image
    return image.to(torch.float32).div_(torch.iinfo(image.dtype).max)


def luminance(rgb: Tensor) -> Tensor:
    """BT.601 luma, the paper's RGB2GRAY: (..., 3, H, W) to (..., 1, H, W), both in [0, 1]."""
    red, green, blue = rgb.split(1, dim=-3)
    return RED * red + GREEN * green + BLUE * blue


def grayscale(rgb: Tensor) -> Tensor:
    """The luma in three equal channels, (..., 3, H, W)."""
    return luminance(rgb).repeat_interleave(3, dim=-3)


def rgb_to_ycbcr(rgb: Tensor) -> Tensor:
    """Full-range BT.601 (JPEG) YCbCr: Y in [0, 1], Cb and Cr in [-0.5, 0.5] with gray at 0."""
    red, _, blue = rgb.split(1, dim=-3)
    luma = luminance(rgb)
    cb = (blue - luma) / (2 - 2 * BLUE)
    cr = (red - luma) / (2 - 2 * RED)
    return torch.cat([luma, cb, cr], dim=-3)


def ycbcr_to_rgb(ycbcr: Tensor) -> Tensor:
    """The inverse of :func:`rgb_to_ycbcr`; colors outside the RGB cube are not clamped."""
    luma, cb, cr = ycbcr.split(1, dim=-3)
    red = luma + (2 - 2 * RED) * cr
    blue = luma + (2 - 2 * BLUE) * cb
    green = (luma - RED * red - BLUE * blue) / GREEN
    return torch.cat([red, green, blue], dim=-3)


def merge_luminance(color_rgb: Tensor, luminance: Tensor) -> Tensor:
    """The color (CbCr) of ``color_rgb`` (..., 3, H, W) with the given luma (..., 1, H, W).

    Clamped to [0, 1]; colors that do not exist at a luma therefore change the luma.
    """
    chroma = rgb_to_ycbcr(color_rgb)[..., 1:, :, :]
    return ycbcr_to_rgb(torch.cat([luminance, chroma], dim=-3)).clamp(0, 1)


def colorfulness(rgb: Tensor) -> Tensor:
    """Hasler and Suesstrunk 2003, M(3), of each image: (..., 3, H, W) in [0, 1] to (...).

    On the original's 0..255 scale: 0 is gray, 15 slightly, 33 moderately, 59 quite colorful. The
    opponent colors keep their sign. The paper's training photos have 15 or more.
    """
    return _colorfulness(_opponents(rgb))


def colorfulness_absolute(rgb: Tensor) -> Tensor:
    """DDColor's variant: :func:`colorfulness` of the opponent colors' absolute values.

    The spread is smaller and the mean larger, so values of the two variants cannot be compared.
    """
    return _colorfulness(_opponents(rgb).abs())


def _opponents(rgb: Tensor) -> Tensor:
    """Red-green and yellow-blue on a 0..255 scale, (..., 2, H * W)."""
    red, green, blue = (255 * rgb).flatten(-2).unbind(dim=-2)
    return torch.stack([red - green, (red + green) / 2 - blue], dim=-2)


def _colorfulness(opponents: Tensor) -> Tensor:
    mean = opponents.mean(dim=-1, keepdim=True)
    # vector_norm, unlike sqrt, has a gradient (of 0) at gray.
    spread = torch.linalg.vector_norm(opponents - mean, dim=(-2, -1)) / opponents.shape[-1] ** 0.5
    return spread + 0.3 * torch.linalg.vector_norm(mean, dim=(-2, -1))


Tone = Literal["gray", "toned", "color"]


def tone(rgb: Tensor) -> Tone:
    """Whether a photo (3, H, W) is gray, toned in one color, or in color.

    Sepia, cyanotypes and yellowed paper often have a colorfulness above 15, but only one color for
    each luma. Deviations from the mean color of a luma are photographed color. Measured at 256
    pixels, which averages out the chroma noise of JPEG files.
    """
    shrink = max(1.0, max(rgb.shape[-2:]) / 256)
    size = [max(1, round(side / shrink)) for side in rgb.shape[-2:]]
    small = F.interpolate(rgb[None], size=size, mode="area")[0]
    if colorfulness(small) < NOTICEABLE_COLOR:
        return "gray"
    opponents = _opponents(small)
    level = (63 * luminance(small)).round().long().flatten()
    tone_curve = opponents.new_zeros(2, 64).index_add(1, level, opponents)
    tone_curve /= level.bincount(minlength=64).clamp(min=1)
    beyond_tone = _colorfulness(opponents - tone_curve[:, level])
    return "color" if beyond_tone >= NOTICEABLE_COLOR else "toned"


class HSVStatistics(NamedTuple):
    """Mean saturation and mean value of each image, in [0, 1], each of shape (...)."""

    saturation: Tensor
    value: Tensor


def hsv_statistics(rgb: Tensor) -> HSVStatistics:
    """Mean S and V of HSV (paper 7.3: Pro-DPO trains on S in [0.3, 0.7] and V in [0.4, 0.8])."""
    value = rgb.amax(dim=-3)
    chroma = value - rgb.amin(dim=-3)
    saturation = torch.where(value > 0, chroma / value.where(value > 0, 1), 0)
    return HSVStatistics(saturation.mean(dim=(-2, -1)), value.mean(dim=(-2, -1)))


FadingOperation = Literal["brightness", "contrast", "saturation"]
FadingStep = tuple[FadingOperation, float]

_ENHANCERS = {
    "brightness": ImageEnhance.Brightness,
    "contrast": ImageEnhance.Contrast,
    "saturation": ImageEnhance.Color,
}
_COMBINATIONS = [
    combination
    for size in (1, 2, 3)
    for combination in itertools.combinations(get_args(FadingOperation), size)
]


@dataclass(frozen=True)
class Fading:
    """A simulated fading: enhancement factors in the order in which they are applied."""

    steps: tuple[FadingStep, ...]


def sample_fading(
    rng: random.Random, low: float, high: float, *, overexposure: bool = False
) -> Fading:
    """A random fading (paper 4.2.1): one of the 7 combinations, equally likely, in random order.

    Each factor is uniform in [low, high]; the paper's stages use [0.5, 0.8] and [0.75, 0.95].
    With ``overexposure`` half of the brightness factors f become 2 - f, which brightens; the
    paper's ranges only darken.

    Raises:
        ColorFluxError: unless 0 <= low <= high.
    """
    if not 0 <= low <= high:
        raise ColorFluxError(f"The fading range must be 0 <= low <= high, not [{low}, {high}].")
    combination = rng.choice(_COMBINATIONS)
    steps: list[FadingStep] = []
    for operation in rng.sample(combination, len(combination)):
        factor = rng.uniform(low, high)
        if overexposure and operation == "brightness" and rng.random() < 0.5:
            factor = 2 - factor
        steps.append((operation, factor))
    return Fading(tuple(steps))


def fade(image: Image.Image, fading: Fading) -> Image.Image:
    """Apply a fading with Pillow's ``ImageEnhance``, as the paper does (7.3)."""
    for operation, factor in fading.steps:
        image = _ENHANCERS[operation](image).enhance(factor)
    return image
