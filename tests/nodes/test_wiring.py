"""What is wired wrongly is refused by node and input, in words that say what belongs there."""

# ruff: noqa: E402  ComfyUI's modules are there only once need_comfyui has found them.

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.nodes.node_runs import refused, run
from tests.nodes.pack import need_comfyui

need_comfyui()

from colorflux_core.bundles.bundle_config import EMBEDDED_NANO
from colorflux_core.model.settings import UNION_MODES
from tests.nodes import comfy_models
from tests.nodes.comfy_models import gray_control, nano, use_folder, visual_prompt

WIDTH = 256  # of nano's text


def image(count: int = 1) -> Tensor:
    return torch.rand(count, 48, 64, 3, generator=torch.Generator().manual_seed(0))


def text(rows: int = 1, width: int = WIDTH, **extras: Any) -> Any:
    return [[torch.zeros(rows, 3, width), {"pooled_output": torch.zeros(1, 768), **extras}]]


def redux(**inputs: Any) -> Any:
    return visual_prompt(nano(), inputs.pop("image", image()), **inputs)


def gray_controlnet(**inputs: Any) -> Any:
    return gray_control(nano(), text(), image(), **inputs)


def test_lora_on_sdxl(monkeypatch: pytest.MonkeyPatch) -> None:
    use_folder(monkeypatch, "loras", EMBEDDED_NANO)
    with refused("Load Pro-DPO LoRA: model", "SDXL", "FLUX.1", "connect"):
        run("ColorFlux_LoadProDPOLoRA", model=comfy_models.sdxl(), lora="pro_dpo.safetensors")


def test_vision_of_another_width(tmp_path: Path) -> None:
    clip_vision = comfy_models.clip_vision(tmp_path, width=64)
    with refused("Redux Visual Prompt: clip_vision", "64", "1808", "sigclip", "connect"):
        redux(clip_vision=clip_vision)


@pytest.mark.parametrize("style_model", [None, "sd"])
def test_no_redux(style_model: str | None) -> None:
    wired = style_model and comfy_models.sd_style_model()
    with refused("Redux Visual Prompt: style_model", "Redux", "connect"):
        redux(style_model=wired)


@pytest.mark.parametrize(
    ("reference", "shape"),
    [
        (torch.zeros(1, 48, 64), "1x48x64"),
        (torch.zeros(1, 0, 64, 3), "1x0x64x3"),
        ({"samples": torch.zeros(1, 16, 8, 8)}, "nothing"),
    ],
)
def test_a_reference_that_is_no_picture(reference: Any, shape: str) -> None:
    with refused("Redux Visual Prompt: reference", shape, "connect"):
        redux(reference=reference)


@pytest.mark.parametrize("photos", [1, 3])
def test_references_that_do_not_match_the_photos(photos: int) -> None:
    with refused("Redux Visual Prompt: reference", "2 pictures", f"{photos} photos", "connect"):
        redux(image=image(photos), reference=image(2))


def test_text_of_another_model() -> None:
    with refused("Redux Visual Prompt: text", "768", "256", "connect"):
        redux(text=text(width=768))


def test_text_with_an_attention_mask() -> None:
    with refused("Redux Visual Prompt: text", "attention mask", "connect"):
        redux(text=text(attention_mask=torch.zeros(1, 4, 4)))


@pytest.mark.parametrize(("rows", "photos"), [(2, 3), (3, 2)])
def test_texts_that_do_not_match_the_photos(rows: int, photos: int) -> None:
    with refused("Redux Visual Prompt: text", f"{rows} prompts", f"{photos} photos", "connect"):
        redux(image=image(photos), text=text(rows))


@pytest.mark.parametrize("kind", ["sd_controlnet", "t2i_adapter", "xlabs_controlnet", "nothing"])
def test_a_controlnet_of_another_kind(kind: str) -> None:
    control_net = getattr(comfy_models, kind)() if kind != "nothing" else None
    with refused("Apply Grayscale ControlNet: control_net", "FLUX.1", "XLabs", "connect"):
        gray_controlnet(control_net=control_net)


@pytest.mark.parametrize(("vae", "channels"), [("sd_vae", "4 latent"), ("nothing", "no latent")])
def test_a_vae_of_another_model(vae: str, channels: str) -> None:
    wired = getattr(comfy_models, vae)() if vae != "nothing" else None
    with refused("Apply Grayscale ControlNet: vae", channels, "16", "connect"):
        gray_controlnet(vae=wired)


@pytest.mark.parametrize("mode", UNION_MODES)
def test_a_mode_for_a_controlnet_without_modes(mode: str) -> None:
    with refused("Apply Grayscale ControlNet: control_net", "no union modes", "union_mode"):
        gray_controlnet(union_mode=mode)


@pytest.mark.parametrize("mode", ["auto", "gray", "low quality"])
def test_a_mode_that_the_union_has_not(mode: str) -> None:
    with refused("Apply Grayscale ControlNet: control_net", "2 union modes", "union_mode"):
        gray_controlnet(control_net=comfy_models.union_controlnet(2), union_mode=mode)


@pytest.mark.parametrize("mode", ["auto", *UNION_MODES])
def test_union_modes_reach_the_controlnet(mode: str) -> None:
    union = comfy_models.union_controlnet(7)
    applied = gray_controlnet(control_net=union, union_mode=mode)[0][1]["control"]
    expected = UNION_MODES.index("gray" if mode == "auto" else mode)
    assert applied.extra_args == {"control_type": [expected]}
    assert not union.extra_args
