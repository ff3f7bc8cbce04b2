from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from colorflux_core.errors import ColorFluxError
from colorflux_core.model.colorization import colorize
from colorflux_core.model.settings import Settings
from colorflux_core.photos.canvas import Canvas
from colorflux_core.photos.color import luminance
from tests.nano_models import tiny_controlnet, tiny_pipeline

SMALL = Settings(canvas=Canvas("aspect", 32), steps=2, text_tokens=3)


def scan(height: int = 45, width: int = 70) -> Tensor:
    return torch.rand(3, height, width, generator=torch.Generator().manual_seed(0))


def test_the_defaults_are_the_papers() -> None:
    paper = Settings()
    assert (paper.canvas.mode, paper.canvas.pixels) == ("square", 1024)
    assert (paper.steps, paper.guidance, paper.control_scale, paper.seed) == (8, 3.5, 1.0, 0)


@pytest.mark.parametrize("size", [(45, 70), (1, 1), (3, 200), (64, 16)])
@pytest.mark.parametrize("canvas", [Canvas("aspect", 32), Canvas("square", 32), Canvas("48x32")])
def test_a_photo_comes_back_at_its_own_size(size: tuple[int, int], canvas: Canvas) -> None:
    result = colorize(tiny_pipeline(), scan(*size), replace(SMALL, canvas=canvas, steps=1))
    assert result.shape == (3, *size)
    assert result.dtype == torch.float32
    assert 0 <= result.min() <= result.max() <= 1


def test_the_settings_reach_the_model() -> None:
    pipeline = tiny_pipeline()
    plain = colorize(pipeline, scan(), SMALL)
    assert torch.equal(colorize(pipeline, scan(), SMALL), plain)
    changes: list[dict[str, Any]] = [
        {"canvas": Canvas("square", 48)},
        {"steps": 3},
        {"guidance": 1.0},
        {"control_scale": 0.5},
        {"control_start": 0.5},
        {"control_end": 0.5},
        {"text_tokens": 4},
        {"detail": 0.5},
        {"seed": 1},
    ]
    for change in changes:
        assert not torch.equal(colorize(pipeline, scan(), replace(SMALL, **change)), plain), change
    union = tiny_pipeline(controlnet=tiny_controlnet(num_mode=7))
    modes = [colorize(union, scan(), replace(SMALL, control_mode=mode)) for mode in (0, 5)]
    assert not torch.equal(*modes)


def test_any_depth_will_do() -> None:
    pipeline = tiny_pipeline()
    eight_bit = (255 * scan()).byte()
    expected = colorize(pipeline, eight_bit / 255, SMALL)
    torch.testing.assert_close(colorize(pipeline, eight_bit, SMALL), expected)
    reference = (255 * scan(20, 30)).byte()
    led = colorize(pipeline, eight_bit, SMALL, reference)
    assert torch.equal(colorize(pipeline, eight_bit, SMALL, reference / 255), led)
    assert not torch.equal(led, expected)


def test_with_detail_the_scan_is_as_sharp_as_it_was() -> None:
    """What the canvas cannot hold is lost without detail, and back with it."""
    pipeline = tiny_pipeline()
    photo = scan(256, 256)
    plain = colorize(pipeline, photo, SMALL)
    sharp = colorize(pipeline, photo, replace(SMALL, detail=1.0))

    def fine(rgb: Tensor) -> Tensor:
        return luminance(rgb).diff(dim=-1).flatten()

    def correlation(rgb: Tensor) -> float:
        return float(torch.corrcoef(torch.stack([fine(rgb), fine(photo)]))[0, 1])

    assert correlation(plain) < 0.2 < 0.8 < correlation(sharp)


def test_progress_is_told_and_may_end_it() -> None:
    pipeline, told = tiny_pipeline(), []
    colorize(pipeline, scan(), SMALL, on_step=lambda done, steps: told.append((done, steps)))
    assert told == [(1, 2), (2, 2)]

    class Cancelled(Exception):
        pass

    def cancel(*_: int) -> None:
        raise Cancelled

    with pytest.raises(Cancelled):
        colorize(pipeline, scan(), SMALL, on_step=cancel)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("steps", 0),
        ("steps", -3),
        ("guidance", -1.0),
        ("guidance", float("nan")),
        ("control_scale", -0.1),
        ("control_start", 1.1),
        ("control_end", -0.1),
        ("text_tokens", -1),
        ("detail", 1.5),
        ("seed", -1),
    ],
)
def test_impossible_settings_are_refused_by_name(name: str, value: Any) -> None:
    with pytest.raises(ColorFluxError, match=rf"^{name} is {value}: it must be (at least|from) "):
        Settings(**{name: value})
