"""Metrics against scikit-image, OpenCV and formulas written out; and pictures of the odd kinds."""

from __future__ import annotations

import math
import warnings

import cv2
import numpy as np
import pytest
import torch
from scipy.stats import wasserstein_distance
from skimage.color import deltaE_ciede2000, rgb2lab
from skimage.metrics import structural_similarity
from torch import Tensor

from colorflux_core.evaluation.metrics.bleeding import bleeding, excess_bleeding, flicker
from colorflux_core.evaluation.metrics.color_metrics import (
    chroma_correlation,
    chroma_psnr,
    ciede2000,
    lab,
    mean_ciede2000,
)
from colorflux_core.evaluation.metrics.metrics import COLUMNS, METRICS, Metric
from colorflux_core.evaluation.metrics.planes import planes
from colorflux_core.evaluation.metrics.structure_metrics import gradient_correlation, ssim
from colorflux_core.evaluation.metrics.tone_metrics import (
    brightness,
    clipped_bright,
    clipped_dark,
    contrast,
    luma_distance,
)
from colorflux_core.photos.color import grayscale, unit_range

# Sharma, Wu and Dalal 2005, Table 1: L, a, b of both colors, and their difference.
SHARMA = """
50.0000 2.6772 -79.7751 50.0000 0.0000 -82.7485 2.0425
50.0000 3.1571 -77.2803 50.0000 0.0000 -82.7485 2.8615
50.0000 2.8361 -74.0200 50.0000 0.0000 -82.7485 3.4412
50.0000 -1.3802 -84.2814 50.0000 0.0000 -82.7485 1.0000
50.0000 -1.1848 -84.8006 50.0000 0.0000 -82.7485 1.0000
50.0000 -0.9009 -85.5211 50.0000 0.0000 -82.7485 1.0000
50.0000 0.0000 0.0000 50.0000 -1.0000 2.0000 2.3669
50.0000 -1.0000 2.0000 50.0000 0.0000 0.0000 2.3669
50.0000 2.4900 -0.0010 50.0000 -2.4900 0.0009 7.1792
50.0000 2.4900 -0.0010 50.0000 -2.4900 0.0010 7.1792
50.0000 2.4900 -0.0010 50.0000 -2.4900 0.0011 7.2195
50.0000 2.4900 -0.0010 50.0000 -2.4900 0.0012 7.2195
50.0000 -0.0010 2.4900 50.0000 0.0009 -2.4900 4.8045
50.0000 -0.0010 2.4900 50.0000 0.0010 -2.4900 4.8045
50.0000 -0.0010 2.4900 50.0000 0.0011 -2.4900 4.7461
50.0000 2.5000 0.0000 50.0000 0.0000 -2.5000 4.3065
50.0000 2.5000 0.0000 73.0000 25.0000 -18.0000 27.1492
50.0000 2.5000 0.0000 61.0000 -5.0000 29.0000 22.8977
50.0000 2.5000 0.0000 56.0000 -27.0000 -3.0000 31.9030
50.0000 2.5000 0.0000 58.0000 24.0000 15.0000 19.4535
50.0000 2.5000 0.0000 50.0000 3.1736 0.5854 1.0000
50.0000 2.5000 0.0000 50.0000 3.2972 0.0000 1.0000
50.0000 2.5000 0.0000 50.0000 1.8634 0.5757 1.0000
50.0000 2.5000 0.0000 50.0000 3.2592 0.3350 1.0000
60.2574 -34.0099 36.2677 60.4626 -34.1751 39.4387 1.2644
63.0109 -31.0961 -5.8663 62.8187 -29.7946 -4.0864 1.2630
61.2901 3.7196 -5.3901 61.4292 2.2480 -4.9620 1.8731
35.0831 -44.1164 3.7933 35.0232 -40.0716 1.5901 1.8645
22.7233 20.0904 -46.6940 23.0331 14.9730 -42.5619 2.0373
36.4612 47.8580 18.3852 36.2715 50.5065 21.2231 1.4146
90.8027 -2.0831 1.4410 91.1528 -1.6435 0.0447 1.4441
90.9257 -0.5406 -0.9208 88.6381 -0.8985 -0.7239 1.5381
6.7747 -0.2908 -2.4247 5.8714 -0.0985 -2.2286 0.6377
2.0776 0.0795 -1.1350 0.9033 -0.0636 -0.5514 0.9082
"""


def picture(seed: int, height: int = 48, width: int = 61) -> Tensor:
    """Smooth colors and noise, (3, height, width) in [0, 1]; some of it clipped."""
    random = torch.Generator().manual_seed(seed)
    coarse = torch.rand(1, 3, 4, 5, generator=random)
    smooth = torch.nn.functional.interpolate(coarse, size=(height, width), mode="bicubic")[0]
    return (smooth + 0.1 * torch.randn(3, height, width, generator=random)).clamp(0, 1)


def channels_last(rgb: Tensor) -> np.ndarray:
    return rgb.double().permute(1, 2, 0).numpy()


def plane(values: list[list[float]] | Tensor) -> Tensor:
    return torch.as_tensor(values, dtype=torch.float32)[None]


# --- color


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 5.1e-5), (torch.float32, 2e-4)])
def test_ciede2000_of_the_published_pairs(dtype: torch.dtype, tolerance: float) -> None:
    """To the four published decimals, and from either side."""
    rows = np.array(
        [[float(value) for value in line.split()] for line in SHARMA.split("\n") if line]
    )
    assert len(rows) == 34
    one, other = (
        torch.from_numpy(rows[:, part].T[..., None]).to(dtype) for part in (slice(3), slice(3, 6))
    )
    assert np.abs(ciede2000(one, other).flatten().numpy() - rows[:, 6]).max() < tolerance
    assert np.abs(ciede2000(other, one).flatten().numpy() - rows[:, 6]).max() < tolerance


def test_lab_and_ciede2000_are_scikit_images() -> None:
    """Over the whole cube, to 0.01 in L*a*b*: its white point differs from its matrix by as much.

    Difference of colors to 0.01 as well, save where hues are opposite, and either mean will do.
    """
    one, other = torch.rand(2, 3, 200, 300, generator=torch.Generator().manual_seed(0))
    ours, others = lab(one), lab(other)
    assert np.abs(channels_last(ours) - rgb2lab(channels_last(one))).max() < 0.01
    expected = deltaE_ciede2000(channels_last(ours), channels_last(others))
    error = np.abs(ciede2000(ours, others)[0].numpy() - expected)
    assert np.quantile(error, 0.999) < 0.01 and error.mean() < 1e-3
    assert mean_ciede2000(one, other).item() == pytest.approx(expected.mean(), abs=1e-3)


def test_lab_of_gray_has_no_chroma() -> None:
    gray = torch.linspace(0, 1, 256).expand(3, 1, 256)
    assert lab(gray)[1:].abs().max() < 1e-3
    assert lab(gray)[0, 0, [0, -1]].tolist() == pytest.approx([0, 100], abs=1e-4)


def test_ciede2000_of_near_grays_is_that_of_lightness() -> None:
    one, other = torch.full((3, 4, 4), 0.5), torch.full((3, 4, 4), 0.6)
    first, second = (float(lab(rgb)[0, 0, 0]) for rgb in (one, other))
    middle = ((first + second) / 2 - 50) ** 2
    expected = (second - first) / (1 + 0.015 * middle / math.sqrt(20 + middle))
    assert mean_ciede2000(one, other).item() == pytest.approx(expected, abs=1e-4)


def test_chroma_psnr_is_that_of_opencvs_8_bit_chroma() -> None:
    """To 0.2 dB: OpenCV rounds Cb and Cr to 8 bits."""
    one, other = ((picture(seed) * 255).round() / 255 for seed in (0, 1))
    first, second = (
        cv2.cvtColor((channels_last(rgb) * 255).round().astype(np.uint8), cv2.COLOR_RGB2YCrCb)[
            ..., 1:
        ]
        for rgb in (one, other)
    )
    found = chroma_psnr(planes(one).chroma, planes(other).chroma).item()
    assert found == pytest.approx(cv2.PSNR(first, second), abs=0.2)


def test_chroma_psnr_of_a_known_error_and_of_none() -> None:
    chroma = torch.zeros(2, 5, 7)
    assert chroma_psnr(chroma, chroma + 0.1).item() == pytest.approx(20, abs=1e-4)
    assert chroma_psnr(chroma, chroma).item() == pytest.approx(60, abs=1e-4)


def test_chroma_correlation_is_of_both_planes_about_their_means() -> None:
    one, other = (planes(picture(seed)).chroma for seed in (2, 3))
    a, b = (c.numpy() - c.mean((1, 2), keepdim=True).numpy() for c in (one, other))
    expected = (a * b).sum() / np.sqrt((a * a).sum() * (b * b).sum())
    assert chroma_correlation(one, other).item() == pytest.approx(expected, abs=1e-5)
    assert chroma_correlation(one, 0.2 * one + 0.1).item() == pytest.approx(1, abs=1e-5)
    assert chroma_correlation(one, -one).item() == pytest.approx(-1, abs=1e-5)
    gray = torch.zeros_like(one)
    assert chroma_correlation(gray, one) == 0
    assert chroma_correlation(gray, gray + 0.3) == 1


# --- tone


def test_tone_is_numpys() -> None:
    luma = planes(picture(4)).luma
    assert brightness(luma).item() == pytest.approx(luma.numpy().mean(), abs=1e-6)
    assert contrast(luma).item() == pytest.approx(luma.numpy().std(), abs=1e-6)


def test_clipped_pixels_are_counted() -> None:
    luma = plane([[0, 2, 3, 128, 252], [253, 254, 255, 100, 1]]) / 255
    assert clipped_dark(luma).item() == pytest.approx(0.3)
    assert clipped_bright(luma).item() == pytest.approx(0.3)


def test_luma_distance_is_scipys_wasserstein_distance() -> None:
    """Exactly so for 8-bit values, to half a level for others."""
    one, other = (planes(picture(seed)).luma for seed in (5, 6))
    expected = wasserstein_distance(one.flatten().numpy(), other.flatten().numpy())
    assert luma_distance(one, other).item() == pytest.approx(expected, abs=0.5 / 255)
    one, other = ((luma * 255).round() / 255 for luma in (one, other))
    expected = wasserstein_distance(one.flatten().numpy(), other.flatten().numpy())
    assert luma_distance(one, other).item() == pytest.approx(expected, abs=1e-5)


def test_luma_distance_of_a_shift_is_the_shift_wherever_pixels_are() -> None:
    luma = (planes(picture(7)).luma * 200).round() / 255
    shuffled = luma.flatten()[torch.randperm(luma.numel())].view_as(luma)
    assert luma_distance(shuffled + 20 / 255, luma).item() == pytest.approx(20 / 255, abs=1e-6)


# --- structure


@pytest.mark.parametrize("size", [(48, 61), (11, 11), (11, 40), (150, 13)])
def test_ssim_is_scikit_images(size: tuple[int, int]) -> None:
    """With Wang's window, to 1e-4."""
    one, other = (planes(picture(seed, *size)).luma for seed in (8, 9))
    other = 0.7 * one + 0.3 * other
    expected = structural_similarity(
        one[0].double().numpy(),
        other[0].double().numpy(),
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
        data_range=1.0,
    )
    assert ssim(one, other).item() == pytest.approx(expected, abs=1e-4)
    assert ssim(one, one).item() == pytest.approx(1, abs=1e-5)


def test_ssim_of_single_colors_compares_their_luma() -> None:
    """To 3e-4: in float32 their variances are not quite 0."""
    for size in ((1, 1), (2, 1), (30, 40)):
        one, other = torch.full((1, *size), 0.2), torch.full((1, *size), 0.6)
        expected = (2 * 0.2 * 0.6 + 1e-4) / (0.2**2 + 0.6**2 + 1e-4)
        assert ssim(one, other).item() == pytest.approx(expected, abs=3e-4)


def test_gradient_correlation_is_numpys() -> None:
    one, other = (planes(picture(seed)).luma for seed in (10, 11))
    other = 0.5 * one + 0.5 * other

    def gradient(luma: Tensor) -> np.ndarray:
        image = luma[0].double().numpy()
        right = np.diff(image, axis=1, append=image[:, -1:])
        below = np.diff(image, axis=0, append=image[-1:])
        return np.concatenate([(g - g.mean()).ravel() for g in (right, below)])

    a, b = gradient(one), gradient(other)
    expected = a @ b / math.sqrt((a @ a) * (b @ b))
    assert gradient_correlation(one, other).item() == pytest.approx(expected, abs=1e-5)


def test_gradient_correlation_forgives_tone_and_not_structure() -> None:
    luma = planes(picture(12)).luma
    assert gradient_correlation(luma, 0.3 * luma + 0.2).item() == pytest.approx(1, abs=1e-5)
    assert gradient_correlation(luma, 1 - luma).item() == pytest.approx(-1, abs=1e-5)
    assert gradient_correlation(luma, luma.roll(7, dims=-1)).abs() < 0.2
    flat = torch.full_like(luma, 0.4)
    assert gradient_correlation(flat, luma) == 0
    assert gradient_correlation(flat, flat + 0.1) == 1


# --- bleeding and flicker


def ramp(slope: float, height: int = 6, width: int = 11) -> Tensor:
    """Cb that grows to the right, Cr 0: (2, height, width)."""
    cb = slope * torch.arange(width, dtype=torch.float32).expand(height, width)
    return torch.stack([cb, torch.zeros(height, width)])


def test_bleeding_is_the_slope_of_chroma_on_a_flat_surface() -> None:
    flat = torch.full((1, 6, 11), 0.5)
    # The last column has no neighbour to the right.
    assert bleeding(ramp(0.01), flat).item() == pytest.approx(0.01 * 10 / 11, abs=1e-6)
    assert bleeding(ramp(0), flat) == 0


def test_a_change_of_color_at_an_edge_is_no_bleeding() -> None:
    luma, chroma = torch.zeros(1, 6, 10), torch.zeros(2, 6, 10)
    luma[..., 5:], chroma[:, :, 5:] = 0.5, 0.3
    assert bleeding(chroma, luma) == 0
    # Two pixels off, it is: 6 of the 54 pixels that are not at the edge change by (0.3, 0.3).
    found = bleeding(chroma.roll(2, dims=-1).contiguous(), luma).item()
    wrapped = chroma.roll(2, dims=-1)[0]
    steps = (wrapped.diff(dim=-1).abs() > 0).sum().item()
    assert found == pytest.approx(steps * 0.3 * math.sqrt(2) / 54, abs=1e-6)


def test_bleeding_over_the_truth_is_where_the_truth_has_less() -> None:
    flat = torch.full((1, 6, 11), 0.5)
    assert excess_bleeding(ramp(0.03), flat, ramp(0.01)).item() == pytest.approx(
        0.02 * 10 / 11, abs=1e-6
    )
    assert excess_bleeding(ramp(0.01), flat, ramp(0.03)) == 0
    truth = planes(picture(13)).chroma
    assert excess_bleeding(truth, planes(picture(13)).luma, truth) == 0


def test_flicker_is_the_change_of_chroma_where_the_input_stays() -> None:
    change, luma_change = torch.zeros(2, 4, 10), torch.zeros(1, 4, 10)
    change[0], change[1] = 0.03, -0.04
    assert flicker(change, luma_change).item() == pytest.approx(0.05, abs=1e-6)
    # What moves may change its color: only the right half stays, and it keeps its own.
    luma_change[..., :5], change[..., 5:] = -0.4, 0
    assert flicker(change, luma_change) == 0
    # Two of the twenty pixels that stay change theirs.
    change[..., :2, 9] = torch.tensor([0.06, 0.08])[:, None]
    assert flicker(change, luma_change).item() == pytest.approx(0.1 * 2 / 20, abs=1e-6)


def test_where_nothing_is_still_there_is_no_bleeding_and_no_flicker() -> None:
    checkers = (torch.arange(6)[:, None] + torch.arange(11)).remainder(2)[None].float()
    checkers[..., -1, -1] = 0.5  # The last pixel has no neighbour.
    still = torch.zeros(1, 6, 11)
    still[..., -1, -1] = 1
    assert bleeding(ramp(0.1), checkers) == 0
    assert flicker(ramp(0.1), torch.ones(1, 6, 11)) == 0


# --- all of them

ODD = {
    "gray": grayscale(picture(20)),
    "black": torch.zeros(3, 20, 20),
    "white": torch.ones(3, 20, 20),
    "a single color": torch.tensor([0.9, 0.2, 0.4])[:, None, None].expand(3, 20, 20),
    "saturated": picture(21).round(),
    "1 x 1": torch.tensor([0.3, 0.6, 0.9])[:, None, None],
    "2 x 1": picture(22, 2, 1),
    "1 x 2": picture(23, 1, 2),
    "1 x 30": picture(24, 1, 30),
    "16 bits": unit_range((picture(25) * 65535).round().to(torch.int32).to(torch.uint16)),
    "8 bits": unit_range((picture(26) * 255).byte()),
}


@pytest.mark.parametrize("kind", ODD)
def test_odd_pictures_break_nothing(kind: str) -> None:
    """Finite beside themselves, their gray and another picture, either way; and no warning."""
    one = planes(ODD[kind].contiguous())
    pairs = [one, planes(grayscale(one.rgb)), planes(1 - one.rgb), planes(torch.ones_like(one.rgb))]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for metric in METRICS:
            for other in pairs:
                for result, against in ((one, other), (other, one)):
                    value = metric.value(result, against)
                    assert value.shape == () and value.isfinite(), metric.column.key


@pytest.mark.parametrize("kind", ODD)
def test_a_picture_is_perfect_beside_itself(kind: str) -> None:
    best = {
        "ciede2000": 0,
        "chroma_psnr": 60,
        "chroma_correlation": 1,
        "luma_distance": 0,
        "ssim_truth": 1,
        "gradient_truth": 1,
        "excess_bleeding": 0,
    }
    one = planes(ODD[kind].contiguous())
    for metric in METRICS:
        if metric.against == "truth":
            value = metric.value(one, one).item()
            assert value == pytest.approx(best.pop(metric.column.key), abs=1e-3)
    assert not best


@pytest.mark.parametrize("metric", METRICS, ids=lambda metric: metric.column.key)
def test_a_batch_is_measured_picture_by_picture(metric: Metric) -> None:
    ones, others = (torch.stack([picture(seed + k) for k in range(3)]) for seed in (30, 40))
    together = metric.value(planes(ones), planes(others))
    singles = [
        metric.value(planes(one), planes(other)) for one, other in zip(ones, others, strict=True)
    ]
    assert together.tolist() == pytest.approx([single.item() for single in singles], rel=1e-4)


def test_a_result_is_what_is_judged() -> None:
    """Not what it is held against: another result has another value."""
    rgb = torch.zeros(3, 20, 20)
    rgb[:, :, 10:] = torch.tensor([1.0, 0.5, 0.5])[:, None, None]
    one, black = planes(rgb), planes(torch.zeros_like(rgb))
    for metric in METRICS:
        if metric.against != "nothing":
            change = metric.value(one, black) - metric.value(black, black)
            assert change.abs() > 0.05, metric.column.key


def test_figures_are_on_the_scales_that_the_report_names() -> None:
    rgb = torch.zeros(3, 10, 10)
    rgb[:, :, 5:] = torch.tensor([1.0, 0.5, 0.5])[:, None, None]
    one, gray = planes(rgb), planes(torch.full_like(rgb, 0.5))
    values = {metric.column.key: metric.value(one, gray).item() for metric in METRICS}
    bright = 0.299 + 0.701 * 0.5
    assert values["brightness"] == pytest.approx(255 * bright / 2, abs=1e-3)
    assert values["contrast"] == pytest.approx(255 * bright / 2, abs=1e-3)
    assert values["saturation"] == pytest.approx(25)
    assert values["clipped_dark"] == 50 and values["clipped_bright"] == 0
    moved = (0.5 + (bright - 0.5)) / 2
    assert values["luma_distance"] == pytest.approx(255 * moved, abs=1)


def test_the_columns_have_keys_of_their_own_and_something_to_say() -> None:
    columns = COLUMNS
    assert len({column.key for column in columns}) == len(columns)
    assert len({column.title for column in columns}) == len(columns)
    assert all(column.explanation.endswith(".") for column in columns)
