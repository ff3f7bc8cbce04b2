"""The metrics that need no download: their report columns and how each is computed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from ...photos.color import colorfulness, hsv_statistics
from ..scores import Column
from .bleeding import bleeding, excess_bleeding, flicker
from .color_metrics import chroma_correlation, chroma_psnr, mean_ciede2000
from .planes import Planes
from .structure_metrics import gradient_correlation, ssim
from .tone_metrics import brightness, clipped_bright, clipped_dark, contrast, luma_distance

VERSION = 1
"""Version of all metrics. Increment it when any value changes, to invalidate old caches."""

Against = Literal["nothing", "input", "truth", "before"]
"""What a result is compared with: the gray input, the color photo, or the previous frame."""


@dataclass(frozen=True)
class Metric:
    """A column of the report and how to compute its value.

    ``value`` takes the planes of the result, (N, 3, H, W) or (3, H, W), and of the image it is
    compared with, and returns (N) or (). For ``before`` it takes the change of the result since
    the previous frame, and the change of the input.
    """

    column: Column
    against: Against
    value: Callable[[Planes, Planes], Tensor]


METRICS = (
    Metric(
        Column(
            "colorfulness",
            "Colorfulness",
            "truth",
            explanation="Hasler and Suesstrunk: 0 is gray, 15 slightly, 33 moderately, 59 quite"
            " colorful.",
        ),
        "nothing",
        lambda result, _: colorfulness(result.rgb),
    ),
    Metric(
        Column(
            "saturation",
            "Saturation",
            "truth",
            "%",
            "Mean HSV saturation.",
        ),
        "nothing",
        lambda result, _: 100 * hsv_statistics(result.rgb).saturation,
    ),
    Metric(
        Column(
            "ciede2000",
            "dE00",
            "lower",
            explanation="Mean CIEDE2000 difference to the truth (L*a*b*, D65): 1 is just"
            " noticeable. Wrong tones count as well as wrong colors.",
        ),
        "truth",
        lambda result, truth: mean_ciede2000(result.rgb, truth.rgb),
    ),
    Metric(
        Column(
            "chroma_psnr",
            "Chroma PSNR",
            "higher",
            "dB",
            "PSNR of Cb and Cr against the truth, at most 60 per image; the peak is their range.",
        ),
        "truth",
        lambda result, truth: chroma_psnr(result.chroma, truth.chroma),
    ),
    Metric(
        Column(
            "chroma_correlation",
            "Chroma corr.",
            "higher",
            explanation="Correlation of Cb and Cr with the truth: the right hues in the right"
            " places, at any saturation.",
        ),
        "truth",
        lambda result, truth: chroma_correlation(result.chroma, truth.chroma),
    ),
    Metric(
        Column(
            "brightness",
            "Brightness",
            "truth",
            "levels",
            "Mean luma, 0 to 255.",
        ),
        "nothing",
        lambda result, _: 255 * brightness(result.luma),
    ),
    Metric(
        Column(
            "contrast",
            "Contrast",
            "truth",
            "levels",
            "Standard deviation of the luma, in levels of 255.",
        ),
        "nothing",
        lambda result, _: 255 * contrast(result.luma),
    ),
    Metric(
        Column(
            "clipped_dark",
            "Black",
            "lower",
            "%",
            "Pixels with a luma of 2 or less, of 255.",
        ),
        "nothing",
        lambda result, _: 100 * clipped_dark(result.luma),
    ),
    Metric(
        Column(
            "clipped_bright",
            "White",
            "lower",
            "%",
            "Pixels with a luma of 253 or more, of 255.",
        ),
        "nothing",
        lambda result, _: 100 * clipped_bright(result.luma),
    ),
    Metric(
        Column(
            "luma_distance",
            "Tone distance",
            "lower",
            "levels",
            "Wasserstein-1 distance between the luma histograms of result and truth, in levels of"
            " 255.",
        ),
        "truth",
        lambda result, truth: 255 * luma_distance(result.luma, truth.luma),
    ),
    Metric(
        Column(
            "ssim_input",
            "SSIM to input",
            "higher",
            explanation="Structural similarity (SSIM) of the luma to the gray input.",
        ),
        "input",
        lambda result, gray: ssim(result.luma, gray.luma),
    ),
    Metric(
        Column(
            "ssim_truth",
            "SSIM to truth",
            "higher",
            explanation="Structural similarity (SSIM) of the luma to the truth.",
        ),
        "truth",
        lambda result, truth: ssim(result.luma, truth.luma),
    ),
    Metric(
        Column(
            "gradient_input",
            "Edges of input",
            "higher",
            explanation="Correlation of the luma gradient with the gray input's, independent of"
            " brightness and contrast.",
        ),
        "input",
        lambda result, gray: gradient_correlation(result.luma, gray.luma),
    ),
    Metric(
        Column(
            "gradient_truth",
            "Edges of truth",
            "higher",
            explanation="Correlation of the luma gradient with the truth's.",
        ),
        "truth",
        lambda result, truth: gradient_correlation(result.luma, truth.luma),
    ),
    Metric(
        Column(
            "bleeding",
            "Bleeding",
            "lower",
            "levels",
            "Chroma change between neighboring pixels where the input's luma has no edge, in"
            " levels of 255. A gray image scores 0.",
        ),
        "input",
        lambda result, gray: 255 * bleeding(result.chroma, gray.luma),
    ),
    Metric(
        Column(
            "excess_bleeding",
            "Bleeding over truth",
            "lower",
            "levels",
            "The same where the truth's luma has no edge, counting only what exceeds the truth's"
            " own chroma change there.",
        ),
        "truth",
        lambda result, truth: 255 * excess_bleeding(result.chroma, truth.luma, truth.chroma),
    ),
    Metric(
        Column(
            "flicker",
            "Flicker",
            "lower",
            "levels",
            "Chroma change since the previous frame where the input's luma is constant, in levels"
            " of 255.",
        ),
        "before",
        lambda change, of_input: 255 * flicker(change.chroma, of_input.luma),
    ),
)

RESIZED = "resized"
"""Key of an extra score: 1 if the result's size differed from the photo's, so that it was resized
before measuring, else 0."""

COLUMNS = tuple(metric.column for metric in METRICS)
