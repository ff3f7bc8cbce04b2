"""Our nodes against ComfyUI's own, where ours claim the same: not a bit of difference."""

# ruff: noqa: E402  ComfyUI's modules are there only once need_comfyui has found them.

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.nodes.node_runs import run
from tests.nodes.pack import need_comfyui

need_comfyui()

from comfy.model_management import load_models_gpu
from comfy.model_patcher import ModelPatcher

from colorflux_core.bundles.bundle_config import EMBEDDED_NANO
from tests.nodes.comfy_models import gray_control, nano, sample, use_folder, visual_prompt

WIDTH = 256  # of nano's text
SIZE = (128, 96)
LORA = "pro_dpo.safetensors"


def gray_photo() -> Tensor:
    """A gray IMAGE at SIZE."""
    luma = torch.rand(1, SIZE[1], SIZE[0], 1, generator=torch.Generator().manual_seed(0))
    return luma.expand(-1, -1, -1, 3).contiguous()


def latent() -> dict[str, Tensor]:
    return {"samples": torch.zeros(1, 16, SIZE[1] // 8, SIZE[0] // 8)}


def text(tokens: int = 7) -> Any:
    """A CONDITIONING as a text encoder would make it."""
    random = torch.Generator().manual_seed(1)
    pooled = torch.randn(1, 768, generator=random)
    rows = torch.randn(1, tokens, WIDTH, generator=random)
    return [[rows, {"pooled_output": pooled, "guidance": 2.5}]]


def stock_redux(image: Tensor, conditioning: Any, strength: float = 1.0) -> Any:
    (seen,) = run("CLIPVisionEncode", clip_vision=nano().clip_vision, image=image, crop="none")
    (styled,) = run(
        "StyleModelApply",
        conditioning=conditioning,
        style_model=nano().style_model,
        clip_vision_output=seen,
        strength=strength,
        strength_type="multiply",
    )
    return styled


def assert_same(ours: Any, stocks: Any) -> None:
    """Two CONDITIONINGs, tokens and extras."""
    assert len(ours) == len(stocks)
    for (our_rows, our_extras), (stock_rows, stock_extras) in zip(ours, stocks, strict=True):
        assert torch.equal(our_rows, stock_rows)
        assert our_extras.keys() == stock_extras.keys()
        for name, value in our_extras.items():
            assert torch.equal(torch.as_tensor(value), torch.as_tensor(stock_extras[name]))


@pytest.mark.parametrize("tokens", [0, 1, 512])
def test_redux_without_text_is_stock_redux_after_zeros(tokens: int) -> None:
    zeros = [[torch.zeros(1, tokens, WIDTH), {"pooled_output": torch.zeros(1, 768)}]]
    ours = visual_prompt(nano(), gray_photo(), text_tokens=tokens)
    assert_same(ours, stock_redux(gray_photo(), zeros))


@pytest.mark.parametrize("strength", [1.0, 0.6, 2.0])
def test_redux_after_a_text_is_stock_redux(strength: float) -> None:
    two_texts = text() + text(3)
    ours = visual_prompt(nano(), gray_photo(), text=two_texts, strength=strength)
    assert_same(ours, stock_redux(gray_photo(), two_texts, strength))


def test_redux_at_strength_0_leaves_the_text() -> None:
    assert_same(visual_prompt(nano(), gray_photo(), text=text(), strength=0.0), text())


def test_redux_leaves_its_inputs_as_they_are() -> None:
    given, image = text(), gray_photo()
    visual_prompt(nano(), image, text=given, strength=0.5)
    assert_same(given, text())
    assert torch.equal(image, gray_photo())


def test_the_bundle_s_vision_crops_as_stock_vision_does() -> None:
    wide = gray_photo()
    squares = {"center": wide, "none": wide[:, :, 16:112]}
    cropped, square = (
        run("CLIPVisionEncode", clip_vision=nano().clip_vision, image=image, crop=crop)[0]
        for crop, image in squares.items()
    )
    assert torch.equal(cropped.last_hidden_state, square.last_hidden_state)


def controlled(image: Tensor, **options: Any) -> Any:
    return gray_control(nano(), visual_prompt(nano(), gray_photo()), image, **options)


def stock_controlled(image: Tensor, **options: Any) -> Any:
    positive, _ = run(
        "ControlNetApplyAdvanced",
        positive=visual_prompt(nano(), gray_photo()),
        negative=[],
        control_net=nano().control_net,
        image=image,
        vae=nano().vae,
        **options,
    )
    return positive


@pytest.mark.parametrize(
    "options", [{}, {"strength": 0.6}, {"start_percent": 0.3, "end_percent": 0.7}]
)
def test_gray_controlnet_is_stock_controlnet_on_a_gray_image(options: dict[str, float]) -> None:
    ours, stocks, none = (
        sample(nano(), conditioning, latent(), SIZE)
        for conditioning in (
            controlled(gray_photo(), **options),
            stock_controlled(gray_photo(), **options),
            visual_prompt(nano(), gray_photo()),
        )
    )
    assert torch.equal(ours, stocks)
    assert not torch.allclose(ours, none, atol=0.1)


def test_gray_controlnet_sees_only_the_luma_of_a_color_image() -> None:
    luma_of_red = torch.full((1, SIZE[1], SIZE[0], 3), 0.299)
    red = torch.zeros_like(luma_of_red)
    red[..., 0] = 1
    hints = [controlled(image)[0][1]["control"].cond_hint_original for image in (red, luma_of_red)]
    assert torch.allclose(*hints)


def test_gray_controlnet_at_strength_0_is_absent() -> None:
    assert_same(controlled(gray_photo(), strength=0.0), visual_prompt(nano(), gray_photo()))


def test_gray_controlnet_goes_after_another_one() -> None:
    first = controlled(gray_photo(), strength=0.5)
    second = gray_control(nano(), first, gray_photo(), strength=0.5)
    once = controlled(gray_photo())
    halves, whole = (sample(nano(), c, latent(), SIZE, steps=2) for c in (second, once))
    assert torch.allclose(halves, whole, atol=1e-4)
    assert first[0][1]["control"].previous_controlnet is None


@pytest.fixture
def loras(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nano's own LoRA in models/loras."""
    use_folder(monkeypatch, "loras", EMBEDDED_NANO)


def patched_weights(model: ModelPatcher) -> dict[str, Tensor]:
    """The weights that sampling uses."""
    load_models_gpu([model], force_full_load=True)
    return {key: weight.clone() for key, weight in model.model.state_dict().items()}


@pytest.mark.parametrize("strength", [1.0, 0.35, -2.0])
@pytest.mark.usefixtures("loras")
def test_lora_is_stock_lora(strength: float) -> None:
    model = nano(0.0).model
    before = patched_weights(model)
    (ours,) = run("ColorFlux_LoadProDPOLoRA", model=model, lora=LORA, strength=strength)
    (stocks,) = run("LoraLoaderModelOnly", model=model, lora_name=LORA, strength_model=strength)
    our_weights, stock_weights = patched_weights(ours), patched_weights(stocks)
    assert our_weights.keys() == stock_weights.keys() == before.keys()
    assert all(torch.equal(our_weights[key], stock_weights[key]) for key in before)
    changed = [key for key in before if not torch.equal(our_weights[key], before[key])]
    assert len(changed) == 8 + 2 * 4  # fused q, k and v: nano has 1 double and 4 single blocks
    after = patched_weights(model)
    assert all(torch.equal(after[key], before[key]) for key in before)


@pytest.mark.usefixtures("loras")
def test_lora_at_strength_0_is_absent() -> None:
    model = nano(0.0).model
    (same,) = run("ColorFlux_LoadProDPOLoRA", model=model, lora=LORA, strength=0.0)
    assert same is model


@pytest.mark.usefixtures("loras")
def test_loras_add_up() -> None:
    (half,) = run("LoraLoaderModelOnly", model=nano(0.0).model, lora_name=LORA, strength_model=0.5)
    (whole,) = run("ColorFlux_LoadProDPOLoRA", model=half, lora=LORA, strength=0.5)
    expected, found = patched_weights(nano().model), patched_weights(whole)
    assert all(torch.allclose(expected[key], found[key], atol=1e-6) for key in expected)
