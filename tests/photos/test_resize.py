from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import colorflux_core.photos.resize as resize
from colorflux_core.errors import ColorFluxError
from colorflux_core.photos.canvas import Canvas
from colorflux_core.photos.color import luminance, rgb_to_ycbcr
from colorflux_core.photos.resize import Resizing

SIZES = [(1, 1), (1, 37), (53, 1), (16, 16), (97, 41), (20000, 10), (10, 20000)]
CANVASES = [Canvas("square", 64), Canvas("aspect", 64), Canvas("48x80")]


def scene(height: int, width: int) -> Tensor:
    """Soft shapes of several colors with a fine texture, away from black and white."""
    y = torch.linspace(0, 1, height)[:, None]
    x = torch.linspace(0, 1, width)
    colors = [torch.sin(5 * x + a) * torch.cos(4 * y + b) for a, b in ((0, 0), (1, 2), (3, 1))]
    noise = torch.rand(1, height, width, generator=torch.Generator().manual_seed(0))
    return 0.5 + 0.17 * torch.stack(colors) + 0.1 * (noise - 0.5)


def psnr(image: Tensor, truth: Tensor) -> float:
    return -10 * math.log10((image - truth).pow(2).mean())


@pytest.mark.parametrize("canvas", CANVASES)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("detail", [0.0, 0.7])
def test_every_size_comes_back(canvas: Canvas, size: tuple[int, int], detail: float) -> None:
    photo = torch.rand(3, *size)
    resizing = Resizing.onto(canvas, size)
    small = resizing.to_canvas(photo)
    assert small.shape == (3, *resizing.canvas)
    back = resizing.back(small, photo, detail)
    assert back.shape == photo.shape
    assert back.isfinite().all() and back.min() >= 0 and back.max() <= 1


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("pixels", [16, 256, 1024])
def test_sides_of_a_canvas(size: tuple[int, int], pixels: int) -> None:
    assert Resizing.onto(Canvas("square", pixels), size).canvas == (pixels, pixels)
    height, width = Resizing.onto(Canvas("aspect", pixels), size).canvas
    assert height % 16 == width % 16 == 0 and min(height, width) >= 16
    assert height * width <= 1.6 * pixels**2
    if max(size) < 3 * min(size) and pixels >= 256:
        assert math.log(height / width) == pytest.approx(math.log(size[0] / size[1]), abs=0.1)
        assert height * width == pytest.approx(pixels**2, rel=0.1)


def test_explicit_canvas_is_width_first() -> None:
    assert Resizing.onto(Canvas("768x1024"), (10, 10)).canvas == (1024, 768)


@pytest.mark.parametrize(
    ("mode", "pixels"),
    [("square", 1000), ("aspect", 0), ("768x1000", 256), ("0x16", 256), ("round", 256)],
)
def test_bad_canvas_names_the_setting(mode: str, pixels: int) -> None:
    with pytest.raises(ColorFluxError, match=r"set canvas|^pixels is"):
        Canvas(mode, pixels)


def test_depths_agree() -> None:
    photo = torch.randint(0, 256, (3, 40, 30), dtype=torch.uint8)
    deep = (photo.int() * 257).to(torch.uint16)
    resizing = Resizing.onto(Canvas("square", 32), (40, 30))
    for other in (deep, photo / 255):
        assert torch.allclose(resizing.to_canvas(photo), resizing.to_canvas(other), atol=1e-6)
        model = torch.rand(3, 32, 32)
        pair = resizing.back(model, photo, 1.0), resizing.back(model, other, 1.0)
        assert torch.allclose(*pair, atol=1e-5)


def test_without_detail_it_is_a_plain_resize() -> None:
    model = torch.rand(3, 32, 48)
    plain = F.interpolate(model[None], (77, 101), mode="bicubic", antialias=True)[0].clamp(0, 1)
    assert torch.equal(Resizing((77, 101), (32, 48)).back(model), plain)


@pytest.mark.parametrize("size", [(203, 301), (24, 31)])
def test_an_unchanged_photo_comes_back_as_it_was(size: tuple[int, int]) -> None:
    photo = scene(*size)
    resizing = Resizing.onto(Canvas("square", 64), size)
    back = resizing.back(resizing.to_canvas(photo), photo, 1.0)
    assert torch.allclose(luminance(back), luminance(photo), atol=2e-3)


def test_contrast_and_brightness_of_the_model_survive_with_full_size_detail() -> None:
    truth = scene(256, 320)
    faded = 0.3 + 0.5 * truth
    resizing = Resizing.onto(Canvas("aspect", 64), (256, 320))
    model = resizing.to_canvas(truth)
    plain, detailed = resizing.back(model), resizing.back(model, faded, 1.0)
    assert psnr(luminance(plain), luminance(truth)) < 32
    assert psnr(luminance(detailed), luminance(truth)) > 50
    assert luminance(detailed).std() == pytest.approx(float(luminance(truth).std()), rel=0.01)
    assert luminance(detailed).mean() == pytest.approx(float(luminance(truth).mean()), abs=1e-3)


def test_detail_lost_by_the_model_at_canvas_size_comes_back_too() -> None:
    truth = scene(64, 64)
    resizing = Resizing.onto(Canvas("square", 64), (64, 64))
    blurred = F.avg_pool2d(truth, 5, 1, 2, count_include_pad=False)
    back = resizing.back(blurred, truth, 1.0)
    assert psnr(luminance(back), luminance(truth)) > psnr(luminance(blurred), luminance(truth)) + 12


def test_color_stays_the_models() -> None:
    photo = luminance(scene(200, 260)).expand(3, -1, -1)
    resizing = Resizing.onto(Canvas("square", 64), (200, 260))
    model = resizing.to_canvas(scene(200, 260))
    plain, detailed = (rgb_to_ycbcr(resizing.back(model, photo, d))[1:] for d in (0.0, 1.0))
    assert torch.allclose(plain.mean((-2, -1)), detailed.mean((-2, -1)), atol=1e-3)
    assert psnr(detailed, plain) > 40


def test_noise_of_a_flat_original_is_not_amplified() -> None:
    photo = 0.5 + 0.01 * torch.randn(3, 256, 256)
    model = torch.rand(3, 64, 64)
    resizing = Resizing.onto(Canvas("square", 64), (256, 256))
    smooth = resizing.back(model, torch.full_like(photo, 0.5), 1.0)
    added = luminance(resizing.back(model, photo, 1.0)) - luminance(smooth)
    assert added.std() < 3 * luminance(photo).std()


@pytest.mark.parametrize("size", [(301, 45), (33, 7), (1, 500)])
def test_strips_equal_the_whole(size: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    photo = torch.rand(2, 3, *size)
    model = torch.rand(2, 3, 48, 32)
    resizing = Resizing(size, (48, 32))
    whole = resizing.back(model, photo, 0.8)
    monkeypatch.setattr(resize, "STRIP_PIXELS", 3 * size[1])
    assert torch.equal(resizing.back(model, photo, 0.8), whole)


def test_rows_are_torchs_bilinear_interpolation() -> None:
    maps = torch.rand(5, 32, 48)
    rows = [resize._upsample_rows(maps, (101, 77), slice(i, i + 1)) for i in range(101)]
    torchs = F.interpolate(maps[None], (101, 77), mode="bilinear")[0]
    assert torch.allclose(torch.cat(rows, dim=-2), torchs, atol=1e-5)


def test_detail_needs_the_original() -> None:
    resizing, model = Resizing((30, 20), (16, 16)), torch.rand(3, 16, 16)
    for original in (None, torch.rand(3, 20, 30)):
        with pytest.raises(ColorFluxError, match="30x20"):
            resizing.back(model, original, 0.5)
    with pytest.raises(ColorFluxError, match="between 0 and 1"):
        resizing.back(model, torch.rand(3, 30, 20), 1.5)


def test_values_that_are_no_numbers_are_refused() -> None:
    resizing = Resizing((20, 30), (16, 16))
    with pytest.raises(ColorFluxError, match="NaN"):
        resizing.back(torch.full((1, 3, 16, 16), torch.nan))
