"""Prepare Photo, Resize Back and Sample Old Photo, and what every node says to a wrong IMAGE."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from colorflux_core.photos.color import luminance
from tests.nodes.node_runs import refused, run
from tests.nodes.pack import load_pack, node_classes

ODD_SIZES = [(1, 1), (1, 300), (300, 1), (37, 53), (64, 64), (511, 129)]


def noise(*shape: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(0))


def scene(height: int, width: int) -> Tensor:
    """A picture (1, H, W, 3) that looks different from each side and is finely textured."""
    y, x = torch.meshgrid(torch.linspace(0, 1, height), torch.linspace(0, 1, width), indexing="ij")
    texture = 0.1 * torch.sin(torch.arange(height * width).view(height, width) * 2.5)
    coarse = torch.stack([0.2 + 0.6 * x, 0.2 + 0.5 * y, 0.3 + 0.2 * x * y], dim=-1)
    return (coarse + texture[..., None]).clamp(0, 1)[None]


@pytest.mark.parametrize("size", ODD_SIZES)
@pytest.mark.parametrize("canvas", ["square", "aspect"])
def test_a_photo_of_any_size_goes_to_the_canvas_and_back(
    size: tuple[int, int], canvas: str
) -> None:
    photos = noise(2, *size, 3)
    gray, latent, width, height = run(
        "ColorFlux_PreparePhoto", image=photos, canvas=canvas, pixels=64
    )
    assert gray.shape == (2, height, width, 3)
    assert latent.keys() == {"samples"}
    assert latent["samples"].shape == (2, 16, height // 8, width // 8)
    assert not latent["samples"].any()
    assert width % 16 == height % 16 == 0
    if canvas == "square":
        assert (height, width) == (64, 64)
    for detail in (0.0, 0.5, 1.0):
        (back,) = run("ColorFlux_ResizeBack", image=gray, original=photos, detail=detail)
        assert back.shape == photos.shape
        assert back.dtype == torch.float32 and back.is_contiguous()
        assert 0 <= back.min() <= back.max() <= 1


def test_aspect_keeps_the_proportions_and_the_number_of_pixels() -> None:
    _, _, width, height = run(
        "ColorFlux_PreparePhoto", image=noise(1, 60, 90, 3), canvas="aspect", pixels=256
    )
    assert width / height == pytest.approx(1.5, rel=0.05)
    assert width * height == pytest.approx(256 * 256, rel=0.05)


def test_prepared_photos_are_gray_and_the_right_way_up() -> None:
    photo = scene(96, 160)
    gray, *_ = run("ColorFlux_PreparePhoto", image=photo, canvas="square", pixels=32)
    assert torch.equal(gray[..., :1].expand(-1, -1, -1, 3), gray)
    expected = adaptive_avg_pool2d(luminance(photo.movedim(-1, 1)), 4)
    assert torch.allclose(adaptive_avg_pool2d(gray[..., 0], 4), expected[0], atol=0.01)


@pytest.mark.parametrize("detail", [0.0, 1.0])
def test_frames_of_a_batch_are_as_each_alone(detail: float) -> None:
    photos = noise(3, 40, 70, 3)

    def there_and_back(image: Tensor) -> tuple[Tensor, Tensor]:
        gray, *_ = run("ColorFlux_PreparePhoto", image=image, canvas="aspect", pixels=48)
        return gray, *run("ColorFlux_ResizeBack", image=gray, original=image, detail=detail)

    together = there_and_back(photos)
    alone = [there_and_back(photo[None]) for photo in photos]
    for whole, parts in zip(together, zip(*alone, strict=True), strict=True):
        assert torch.equal(whole, torch.cat(parts))


RGB = noise(1, 20, 30, 3)
UNUSUAL = {
    "one channel": (RGB[..., :1], RGB[..., [0, 0, 0]]),
    "alpha": (torch.cat([RGB, torch.zeros(1, 20, 30, 1)], dim=-1), RGB),
    "too bright and too dark": (4 * RGB - 2, (4 * RGB - 2).clamp(0, 1)),
    "half precision": (RGB.half(), RGB.half().float()),
    "a view": (RGB.transpose(1, 2), RGB.transpose(1, 2).contiguous()),
}


@pytest.mark.parametrize("kind", UNUSUAL)
def test_unusual_pictures_are_read_as_what_they_show(kind: str) -> None:
    picture, same = UNUSUAL[kind]
    before = picture.clone()
    gray, *_ = run("ColorFlux_PreparePhoto", image=picture, pixels=32)
    assert torch.equal(gray, run("ColorFlux_PreparePhoto", image=same, pixels=32)[0])
    (expected,) = run("ColorFlux_ResizeBack", image=same, original=same, detail=1.0)
    for image, original in ((picture, same), (same, picture)):
        (back,) = run("ColorFlux_ResizeBack", image=image, original=original, detail=1.0)
        assert torch.equal(back, expected)
    assert torch.equal(picture, before)


def test_detail_comes_from_the_original_and_color_from_the_model() -> None:
    original = scene(120, 180)
    gray_original = luminance(original.movedim(-1, 1)).movedim(1, -1).expand(-1, -1, -1, 3)
    canvas, *_ = run("ColorFlux_PreparePhoto", image=original, canvas="square", pixels=48)
    tinted = (canvas * torch.tensor([1.0, 0.8, 0.6])).clamp(0, 1)

    def luma_error(detail: float) -> float:
        (back,) = run("ColorFlux_ResizeBack", image=canvas, original=gray_original, detail=detail)
        return (back - gray_original).abs().mean().item()

    assert luma_error(1.0) < 0.1 * luma_error(0.0)
    (back,) = run("ColorFlux_ResizeBack", image=tinted, original=original, detail=1.0)
    red, green, blue = back.mean(dim=(0, 1, 2))
    assert green / red == pytest.approx(0.8, abs=0.05)
    assert blue / red == pytest.approx(0.6, abs=0.05)


def test_one_original_serves_for_all_frames() -> None:
    frames, original = noise(3, 32, 32, 3), noise(1, 50, 60, 3)
    (back,) = run("ColorFlux_ResizeBack", image=frames, original=original, detail=1.0)
    (each,) = run(
        "ColorFlux_ResizeBack", image=frames, original=original.expand(3, -1, -1, -1), detail=1.0
    )
    assert torch.equal(back, each)
    with refused("Resize Back", "original", "2", "3", "Prepare Photo"):
        run("ColorFlux_ResizeBack", image=frames, original=original.expand(2, -1, -1, -1))


def test_8k_scans_go_through() -> None:
    scan = noise(1, 108, 192, 3).repeat_interleave(40, 1).repeat_interleave(40, 2)
    gray, *_ = run("ColorFlux_PreparePhoto", image=scan, canvas="aspect")
    (back,) = run("ColorFlux_ResizeBack", image=gray, original=scan, detail=1.0)
    assert back.shape == (1, 4320, 7680, 3)


def test_sample_photos_are_pictures() -> None:
    choice = node_classes()["ColorFlux_SamplePhoto"].GET_SCHEMA().inputs[0]
    assert choice.options
    for name in choice.options:
        (photo,) = run("ColorFlux_SamplePhoto", photo=name)
        batch, height, width, channels = photo.shape
        assert (batch, channels) == (1, 3)
        assert min(height, width) > 200
        assert 0 <= photo.min() < 0.3 and 0.6 < photo.max() <= 1


ELSEWHERE: dict[tuple[str, str], tuple[str, dict[str, Any]]] = {
    ("Prepare Photo", "image"): ("ColorFlux_PreparePhoto", {}),
    ("Redux Visual Prompt", "image"): (
        "ColorFlux_ReduxVisualPrompt",
        {"clip_vision": None, "style_model": None},
    ),
    ("Apply Grayscale ControlNet", "image"): (
        "ColorFlux_ApplyGrayControlNet",
        {"conditioning": [], "control_net": None, "vae": None},
    ),
    ("Resize Back", "image"): ("ColorFlux_ResizeBack", {"original": noise(1, 20, 30, 3)}),
    ("Resize Back", "original"): ("ColorFlux_ResizeBack", {"image": noise(1, 16, 16, 3)}),
    ("Compare Photos", "before"): ("ColorFlux_Compare", {"after": noise(1, 20, 30, 3)}),
    ("Compare Photos", "after"): ("ColorFlux_Compare", {"before": noise(1, 20, 30, 3)}),
}
NO_PICTURES = {
    "a mask": (noise(1, 20, 30), "1x20x30"),
    "a latent": ({"samples": noise(1, 16, 8, 8)}, "nothing"),
    "nothing": (None, "nothing"),
    "two channels": (noise(1, 20, 30, 2), "1x20x30x2"),
    "channels first": (noise(1, 3, 20, 30), "1x3x20x30"),
    "a video": (noise(1, 5, 20, 30, 3), "1x5x20x30x3"),
    "no pixels": (noise(1, 0, 30, 3), "1x0x30x3"),
    "no frames": (noise(0, 20, 30, 3), "0x20x30x3"),
}


@pytest.mark.parametrize(("node", "name"), ELSEWHERE)
@pytest.mark.parametrize("kind", NO_PICTURES)
def test_what_is_no_picture_is_refused_by_node_and_input(node: str, name: str, kind: str) -> None:
    node_id, inputs = ELSEWHERE[node, name]
    given, shape = NO_PICTURES[kind]
    with refused(f"{node}: {name}", shape, "connect"):
        run(node_id, **inputs, **{name: given})


class Cancelled(Exception):
    """What ComfyUI raises in its progress hook, on Cancel."""


@pytest.mark.parametrize(
    ("node_id", "inputs"),
    [
        ("ColorFlux_PreparePhoto", {"pixels": 16}),
        ("ColorFlux_ResizeBack", {"original": noise(3, 20, 30, 3)}),
    ],
)
def test_frames_show_progress_and_stop_on_cancel(
    node_id: str, inputs: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    load_pack()
    seen: list[tuple[int, int]] = []

    def hook(value: int, total: int, *_: object, **__: object) -> None:
        seen.append((value, total))
        if stop:
            raise Cancelled

    monkeypatch.setattr(import_module("comfy.utils"), "PROGRESS_BAR_HOOK", hook)
    stop = False
    run(node_id, image=noise(3, 16, 16, 3), **inputs)
    assert seen[-1] == (3, 3)
    seen.clear()
    stop = True
    with pytest.raises(Cancelled):
        run(node_id, image=noise(3, 16, 16, 3), **inputs)
    assert seen == [(1, 3)]
