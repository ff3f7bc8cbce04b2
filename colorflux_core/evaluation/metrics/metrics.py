"""The metrics that need no download: what each is, for the report, and how it comes of pictures."""

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
"""Of all values below. Raise it when any changes, so that none is taken from an old cache."""

Against = Literal["nothing", "input", "truth", "before"]
"""What a result is held against: the gray input, the color photo, or the frame before it."""


@dataclass(frozen=True)
class Metric:
    """A column of the report, and the value of one result (N, 3, H, W) or (3, H, W): (N) or ().

    ``value`` is given the result and what it is held against; ``before``, the change of the result
    since the frame before it, and the change of the input.
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
            "Mean saturation of HSV.",
        ),
        "nothing",
        lambda result, _: 100 * hsv_statistics(result.rgb).saturation,
    ),
    Metric(
        Column(
            "ciede2000",
            "dE00",
            "lower",
            explanation="Mean CIEDE2000 to the truth, in L*a*b* under D65: 1 can just be seen."
            " Wrong tones count as well as wrong colors.",
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
            "Of Cb and Cr to the truth's, at most 60 for each image; the peak is their range.",
        ),
        "truth",
        lambda result, truth: chroma_psnr(result.chroma, truth.chroma),
    ),
    Metric(
        Column(
            "chroma_correlation",
            "Chroma corr.",
            "higher",
            explanation="Correlation of Cb and Cr with the truth's: the right hues in the right"
            " places, however pale.",
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
            "Mean luma, of 255.",
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
            "Standard deviation of the luma, of 255.",
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
            "Pixels whose luma is 2 or less, of 255.",
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
            "Pixels whose luma is 253 or more, of 255.",
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
            "Wasserstein-1 between the histograms of the luma and the truth's, of 255.",
        ),
        "truth",
        lambda result, truth: 255 * luma_distance(result.luma, truth.luma),
    ),
    Metric(
        Column(
            "ssim_input",
            "SSIM to input",
            "higher",
            explanation="Structural similarity of the luma to the gray input's.",
        ),
        "input",
        lambda result, given: ssim(result.luma, given.luma),
    ),
    Metric(
        Column(
            "ssim_truth",
            "SSIM to truth",
            "higher",
            explanation="Structural similarity of the luma to the truth's.",
        ),
        "truth",
        lambda result, truth: ssim(result.luma, truth.luma),
    ),
    Metric(
        Column(
            "gradient_input",
            "Edges of input",
            "higher",
            explanation="Correlation of the luma's gradient with the gray input's, whatever the"
            " brightness and the contrast.",
        ),
        "input",
        lambda result, given: gradient_correlation(result.luma, given.luma),
    ),
    Metric(
        Column(
            "gradient_truth",
            "Edges of truth",
            "higher",
            explanation="Correlation of the luma's gradient with the truth's.",
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
            "Change of chroma from pixel to pixel where the input's luma has no edge, of 255."
            " Gray has none.",
        ),
        "input",
        lambda result, given: 255 * bleeding(result.chroma, given.luma),
    ),
    Metric(
        Column(
            "excess_bleeding",
            "Bleeding over truth",
            "lower",
            "levels",
            "The same where the truth's luma has no edge, and only what goes beyond the truth's"
            " own change of chroma there.",
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
            "Change of chroma since the frame before, where the input's luma stays, of 255.",
        ),
        "before",
        lambda change, of_input: 255 * flicker(change.chroma, of_input.luma),
    ),
)

RESIZED = "resized"
"""Not a metric, but a score beside them: 1 for a result of another size than the photo's, which was
resized before it was measured, else 0."""

COLUMNS = tuple(metric.column for metric in METRICS)
