from __future__ import annotations

import colorsys
import math
import random
from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from torch import Tensor

from colorflux_core.errors import ColorFluxError
from colorflux_core.photos.color import (
    Fading,
    FadingOperation,
    FadingStep,
    colorfulness,
    colorfulness_absolute,
    fade,
    grayscale,
    hsv_statistics,
    luminance,
    merge_luminance,
    require_rgb,
    rgb_to_ycbcr,
    sample_fading,
    tone,
    unit_range,
    ycbcr_to_rgb,
)


def pixels(image: Image.Image) -> Tensor:
    return unit_range(torch.from_numpy(np.array(image)).permute(2, 0, 1))


@pytest.fixture
def image() -> Image.Image:
    noise = np.random.default_rng(0).integers(0, 256, (37, 23, 3), dtype=np.uint8)
    return Image.fromarray(noise)


def test_luma_and_ycbcr_agree_with_pillow(image: Image.Image) -> None:
    rgb = pixels(image)
    ycbcr = rgb_to_ycbcr(rgb) + torch.tensor([0, 128 / 255, 128 / 255]).view(3, 1, 1)
    assert (ycbcr - pixels(image.convert("YCbCr"))).abs().max() <= 1.01 / 255
    luma = np.array(image.convert("L")) / 255
    assert np.abs(luminance(rgb)[0].numpy() - luma).max() <= 0.51 / 255


def test_ycbcr_inverts_and_gray_has_no_chroma() -> None:
    rgb = torch.rand(2, 5, 3, 7, 9)
    assert torch.allclose(ycbcr_to_rgb(rgb_to_ycbcr(rgb)), rgb, atol=1e-6)
    assert rgb_to_ycbcr(grayscale(rgb))[..., 1:, :, :].abs().max() < 1e-6
    assert torch.allclose(luminance(grayscale(rgb)), luminance(rgb), atol=1e-6)


def test_merged_luminance_keeps_luma_and_color() -> None:
    color = 0.4 + 0.2 * torch.rand(3, 8, 8)
    luma = 0.4 + 0.2 * torch.rand(1, 8, 8)
    ycbcr = rgb_to_ycbcr(merge_luminance(color, luma))
    assert torch.allclose(ycbcr[:1], luma, atol=1e-6)
    assert torch.allclose(ycbcr[1:], rgb_to_ycbcr(color)[1:], atol=1e-6)
    assert merge_luminance(torch.rand(3, 8, 8), torch.ones(1, 8, 8)).max() <= 1


def two_colors(first: tuple[float, ...], second: tuple[float, ...]) -> Tensor:
    return torch.tensor([first, second]).T.reshape(3, 1, 2)


def test_colorfulness_in_closed_form() -> None:
    # Pure red and pure cyan: rg = +-255, yb = +-127.5, means 0, or 255 and 127.5 unsigned.
    pair = two_colors((1, 0, 0), (0, 1, 1))
    assert colorfulness(pair) == pytest.approx(math.hypot(255, 127.5))
    assert colorfulness_absolute(pair) == pytest.approx(0.3 * math.hypot(255, 127.5))
    # One color all over has no spread: R - G = 51, (R + G) / 2 - B = 76.5.
    flat = two_colors((0.6, 0.4, 0.2), (0.6, 0.4, 0.2))
    assert colorfulness(flat) == pytest.approx(0.3 * math.hypot(51, 76.5), rel=1e-5)


def test_colorfulness_of_a_batch_and_its_gradient_at_gray() -> None:
    batch = torch.rand(2, 3, 3, 6, 5)
    assert colorfulness(batch).shape == (2, 3)
    assert torch.allclose(colorfulness(batch)[1, 2], colorfulness(batch[1, 2]))
    gray = torch.full((3, 4, 4), 0.5, requires_grad=True)
    colorfulness(gray).backward()
    assert gray.grad is not None and gray.grad.isfinite().all()


def test_hsv_statistics_are_colorsys() -> None:
    rgb = torch.rand(2, 3, 5, 4)
    rgb[0, :, 0, 0] = 0
    found = hsv_statistics(rgb)
    for index, one in enumerate(rgb):
        hsv = [colorsys.rgb_to_hsv(*pixel) for pixel in one.flatten(1).T.tolist()]
        _, saturation, value = np.mean(hsv, axis=0)
        assert found.saturation[index] == pytest.approx(saturation, abs=1e-6)
        assert found.value[index] == pytest.approx(value, abs=1e-6)


def test_fade_is_what_the_enhancers_promise(image: Image.Image) -> None:
    rgb = pixels(image)
    expected: dict[FadingOperation, Tensor] = {
        "brightness": 0.6 * rgb,
        "contrast": 0.6 * rgb + 0.4 * luminance(rgb).mean(),
        "saturation": 0.6 * rgb + 0.4 * luminance(rgb),
    }
    for operation, result in expected.items():
        faded = fade(image, Fading(((operation, 0.6),)))
        assert (pixels(faded) - result).abs().max() <= 1.5 / 255, operation


def test_fade_keeps_the_order(image: Image.Image) -> None:
    brighten: FadingStep = ("brightness", 2.0)
    flatten: FadingStep = ("contrast", 0.5)
    assert pixels(fade(image, Fading((brighten, flatten)))).max() < 1
    assert pixels(fade(image, Fading((flatten, brighten)))).max() == 1


def test_sampled_fadings_cover_all_combinations_and_orders_alike() -> None:
    rng = random.Random(0)
    fadings = [sample_fading(rng, 0.5, 0.8) for _ in range(7000)]
    orders = Counter(tuple(operation for operation, _ in fading.steps) for fading in fadings)
    assert len(orders) == 3 + 6 + 6
    for order, count in orders.items():
        assert count == pytest.approx(1000 / math.factorial(len(order)), rel=0.25)
    factors = [factor for fading in fadings for _, factor in fading.steps]
    assert 0.5 <= min(factors) < 0.501 and 0.799 < max(factors) <= 0.8
    assert sample_fading(random.Random(3), 0.5, 0.8) == sample_fading(random.Random(3), 0.5, 0.8)


def test_overexposure_brightens_only_and_only_on_request() -> None:
    rng = random.Random(0)
    steps = [
        step for _ in range(500) for step in sample_fading(rng, 0.75, 0.95, overexposure=True).steps
    ]
    above = {operation for operation, factor in steps if factor > 1}
    assert above == {"brightness"}
    assert all(0.75 <= factor <= 0.95 or 1.05 <= factor <= 1.25 for _, factor in steps)


@pytest.mark.parametrize(("low", "high"), [(0.8, 0.5), (-0.1, 0.5)])
def test_bad_fading_range(low: float, high: float) -> None:
    with pytest.raises(ColorFluxError, match="low <= high"):
        sample_fading(random.Random(0), low, high)


def test_a_toned_print_is_not_a_color_photo() -> None:
    y, x = np.mgrid[0:300, 0:400] / 60
    light = Image.fromarray((127 + 120 * np.sin(x) * np.cos(y)).astype(np.uint8))
    sepia = pixels(ImageOps.colorize(light, (30, 15, 5), (255, 240, 200), mid=(150, 110, 70)))
    assert colorfulness(sepia) > 15
    assert tone(sepia) == "toned"
    assert tone(grayscale(sepia)) == "gray"
    hues = torch.from_numpy(np.stack([np.sin(x), np.cos(y), np.sin(x + y)])).float()
    assert tone(0.5 + 0.2 * hues) == "color"
    assert tone(torch.full((3, 1, 1), 0.5)) == "gray"


def test_unit_range() -> None:
    assert unit_range(torch.tensor([0, 255], dtype=torch.uint8)).tolist() == [0, 1]
    assert unit_range(torch.tensor([0, 65535]).to(torch.uint16)).tolist() == [0, 1]
    half = torch.tensor([0.5])
    assert unit_range(half) is half


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        (torch.full((3, 4, 4), 200.0), "divide it by 255"),
        (torch.full((3, 4, 4), -3.0), r"not in \[0, 1\]"),
        (torch.full((3, 4, 4), torch.inf), "infinite"),
        (torch.rand(1, 3, 4, 4), "1x3x4x4"),
        (torch.rand(4, 4, 3), "4x4x3"),
        (torch.rand(3, 0, 4), "3x0x4"),
        (torch.rand(3, 4, 4).numpy(), "torch.from_numpy"),
        (torch.zeros(3, 4, 4, dtype=torch.int64), "int64"),
    ],
)
def test_what_is_not_one_rgb_picture_is_refused_in_one_line(wrong: object, named: str) -> None:
    with pytest.raises(ColorFluxError, match=named) as told:
        require_rgb(wrong)
    assert "\n" not in str(told.value)
    require_rgb(torch.rand(3, 4, 4))
    require_rgb(torch.zeros(3, 4, 4, dtype=torch.uint16))
