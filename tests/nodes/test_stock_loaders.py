"""ComfyUI's own loaders read what our trainers write, at FLUX.1-dev's width with few blocks.

About 4 GB of memory at the peak: on a CPU, ComfyUI loads in float32.
"""

# ruff: noqa: E402  ComfyUI's modules are there only once need_comfyui has found them.

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import FluxControlNetModel
from diffusers.pipelines.flux.modeling_flux import ReduxImageEncoder
from torch import Tensor, nn

from tests.nodes.node_runs import run
from tests.nodes.pack import need_comfyui

need_comfyui()

import comfy.clip_vision
import comfy.utils

from colorflux_core.bundles.bundle import save_bundle
from colorflux_core.model.latents import pack
from colorflux_core.model.lora import add_lora, load_lora_state, save_lora
from colorflux_core.model.settings import Settings
from colorflux_core.model.velocity import Conditions, control_residuals
from tests import flux_models
from tests.nano_models import SIGLIP, tiny_pipeline
from tests.nodes.comfy_models import flux_dev, lora_deltas, use_folder

WEIGHTS = "diffusion_pytorch_model.safetensors"  # as diffusers names them


@torch.no_grad()
def materialise(model: Any) -> Any:
    """A model from the meta device with bfloat16 weights, all different, in no time."""
    model = model.to(torch.bfloat16).to_empty(device="cpu")
    random = torch.Generator().manual_seed(0)
    noise = 0.02 * torch.randn(2**22, generator=random)
    for name, parameter in model.named_parameters():
        for part in parameter.view(-1).split(2**21):
            start = int(torch.randint(2**21, (), generator=random))
            part.copy_(noise[start : start + len(part)])
        if name.rpartition(".")[0].endswith(("norm_q", "norm_k", "norm_added_q", "norm_added_k")):
            parameter.add_(1)
    return model


def assert_close(found: Tensor, expected: Tensor, tolerance: float) -> None:
    """Beside the largest value."""
    error = (found - expected).abs().max() / expected.abs().max()
    assert found.shape == expected.shape and error < tolerance


def noise(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def test_controlnet(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with torch.device("meta"):
        empty = FluxControlNetModel(num_layers=1, num_single_layers=1, guidance_embeds=True)
    model = materialise(empty)
    model.save_pretrained(tmp_path)
    latents, hint = noise(2, 16, 8, 6), 2 * noise(2, 16, 8, 6)
    prompt, pooled, t = noise(2, 5, 4096), noise(2, 768), torch.tensor([0.3, 0.9])
    with torch.no_grad():
        expected = control_residuals(
            model.float(), pack(latents), t, pack(hint), Conditions(prompt, (8, 6), 3.5, pooled)
        )
    assert expected.double is not None and expected.single is not None
    del model

    use_folder(monkeypatch, "controlnet", tmp_path)
    with caplog.at_level("DEBUG"):
        (control_net,) = run("ControlNetLoader", control_net_name=WEIGHTS)
    assert "missing" not in caplog.text and "unexpected" not in caplog.text
    with torch.inference_mode():
        found = control_net.control_model(
            x=latents,
            hint=hint,
            timesteps=t,
            context=prompt,
            y=pooled,
            guidance=torch.full((2,), 3.5),
        )
    # FLUX.1-dev has 19 double and 38 single blocks; each adds the residual of the block it follows.
    assert (len(found["input"]), len(found["output"])) == (19, 38)
    for residual in found["input"]:
        assert_close(residual, expected.double[0], 1e-5)
    for residual in found["output"]:
        assert_close(residual, expected.single[0], 1e-5)


def test_redux(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with torch.device("meta"):
        empty = ReduxImageEncoder(redux_dim=1152, txt_in_features=4096)
    model = materialise(empty)
    model.save_pretrained(tmp_path)
    tokens = noise(2, 3, 1152)
    with torch.no_grad():
        expected = model.float()(tokens).image_embeds

    use_folder(monkeypatch, "style_models", tmp_path)
    (style_model,) = run("StyleModelLoader", style_model_name=WEIGHTS)
    seen = comfy.clip_vision.Output()
    seen["last_hidden_state"] = tokens
    with torch.inference_mode():
        assert_close(style_model.get_cond(seen), expected, 1e-5)


def test_lora(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    transformer = flux_models.flux_dev(1, 1)
    add_lora(transformer, rank=2)
    for module in transformer.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.requires_grad:
                setattr(module, name, nn.Parameter(noise(*parameter.shape)))
    save_lora(transformer, tmp_path / "lora.safetensors")

    use_folder(monkeypatch, "loras", tmp_path)
    with caplog.at_level("DEBUG"):
        (model,) = run("LoraLoaderModelOnly", model=flux_dev(), lora_name="lora.safetensors")
    assert "not loaded" not in caplog.text.lower()
    deltas = lora_deltas(model)
    state = load_lora_state(tmp_path / "lora.safetensors")

    def product(module: str) -> Tensor:
        name = f"transformer.{module}"
        return state[f"{name}.lora_B.weight"] @ state[f"{name}.lora_A.weight"]

    attention, single = "transformer_blocks.0.attn", "single_transformer_blocks.0"
    layers = {
        "double_blocks.0.img_attn.qkv": [f"{attention}.to_{x}" for x in "qkv"],
        "double_blocks.0.txt_attn.qkv": [f"{attention}.add_{x}_proj" for x in "qkv"],
        "double_blocks.0.img_attn.proj": [f"{attention}.to_out.0"],
        "double_blocks.0.txt_attn.proj": [f"{attention}.to_add_out"],
        "double_blocks.0.img_mlp.0": ["transformer_blocks.0.ff.net.0.proj"],
        "double_blocks.0.img_mlp.2": ["transformer_blocks.0.ff.net.2"],
        "double_blocks.0.txt_mlp.0": ["transformer_blocks.0.ff_context.net.0.proj"],
        "double_blocks.0.txt_mlp.2": ["transformer_blocks.0.ff_context.net.2"],
        "single_blocks.0.linear1": [
            *(f"{single}.attn.to_{x}" for x in "qkv"),
            f"{single}.proj_mlp",
        ],
        "single_blocks.0.linear2": [f"{single}.proj_out"],
    }
    assert len(state) == 2 * sum(map(len, layers.values()))
    assert deltas.keys() == {f"diffusion_model.{layer}.weight" for layer in layers}
    for layer, modules in layers.items():
        expected = torch.cat([product(module) for module in modules])
        assert_close(deltas[f"diffusion_model.{layer}.weight"], expected, 1e-6)


def test_siglip_of_a_bundle(tmp_path: Path) -> None:
    """ComfyUI knows SigLIP by its number of layers, so that a tiny one is built by hand."""
    pipeline = tiny_pipeline("siglip")
    save_bundle(tmp_path, pipeline, Settings())
    config = {
        "model_type": "siglip_vision_model",
        "num_channels": 3,
        "hidden_act": "gelu_pytorch_tanh",
        "layer_norm_eps": 1e-6,
        "image_mean": [0.5] * 3,
        "image_std": [0.5] * 3,
        **SIGLIP,
    }
    file = tmp_path / "siglip.json"
    file.write_text(json.dumps(config), encoding="utf-8")
    clip_vision = comfy.clip_vision.ClipVisionModel(file)
    weights = comfy.utils.load_torch_file(str(tmp_path / "image_encoder" / "model.safetensors"))
    missing, _ = clip_vision.load_sd(weights)
    assert not missing
    # Of the size that it sees, in 8 bits: nothing is resized or rounded.
    image = torch.randint(256, (1, 32, 32, 3), generator=torch.Generator().manual_seed(0)) / 255
    (seen,) = run("CLIPVisionEncode", clip_vision=clip_vision, image=image, crop="none")
    with torch.no_grad():
        pixels = 2 * image.movedim(-1, 1) - 1
        expected = pipeline.image_encoder(pixel_values=pixels).last_hidden_state
    assert_close(seen.last_hidden_state, expected, 1e-3)  # ComfyUI keeps it in float16.
