"""Single files in the layouts in which the public weights are published."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from diffusers import AutoencoderKL, FluxTransformer2DModel
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import SiglipVisionConfig, SiglipVisionModel

from colorflux_core.bundles import components
from colorflux_core.bundles.components import load_model
from colorflux_core.errors import ColorFluxError
from tests.flux_models import tiny_transformer, tiny_vae
from tests.nano_models import SIGLIP, tiny_controlnet, tiny_pipeline, tiny_siglip

TINY_VAE = {**components.FLUX_VAE, "block_out_channels": (32,) * 4, "layers_per_block": 1}


def saved(state: Mapping[str, Tensor], folder: Path) -> Path:
    path = folder / "model.safetensors"
    save_file({key: tensor.contiguous() for key, tensor in state.items()}, path)
    return path


def shape(model: Any) -> dict[str, object]:
    return {key: value for key, value in model.config.items() if not key.startswith("_")}


def same(one: nn.Module, other: nn.Module) -> bool:
    first, second = one.state_dict(), other.state_dict()
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


def test_redux(tmp_path: Path) -> None:
    redux = tiny_pipeline().image_embedder
    assert list(redux.state_dict()) == [
        f"redux_{way}.{kind}" for way in ("up", "down") for kind in ("weight", "bias")
    ]
    loaded = load_model("image_embedder", saved(redux.state_dict(), tmp_path), torch.float32)
    assert same(loaded, redux)


@pytest.mark.parametrize("options", [{}, {"num_mode": 10}, {"guidance_embeds": False}])
def test_a_controlnet_with_diffusers_keys(options: dict[str, int], tmp_path: Path) -> None:
    controlnet = tiny_controlnet(**options)
    loaded = load_model("controlnet", saved(controlnet.state_dict(), tmp_path), torch.float32)
    assert same(loaded, controlnet)
    assert shape(loaded) == shape(controlnet)


def test_a_controlnet_without_single_blocks(tmp_path: Path) -> None:
    """As Shakker Labs' Union Pro 2.0 is."""
    controlnet = tiny_controlnet(num_layers=2, num_single_layers=0)
    loaded = load_model("controlnet", saved(controlnet.state_dict(), tmp_path), torch.float32)
    assert same(loaded, controlnet)


def test_a_transformer_with_diffusers_keys(tmp_path: Path) -> None:
    transformer = tiny_transformer()
    loaded = load_model("transformer", saved(transformer.state_dict(), tmp_path), torch.float32)
    assert same(loaded, transformer)
    assert shape(loaded) == shape(transformer)


def black_forest_keys() -> dict[str, Tensor]:
    """``flux1-dev.safetensors``: its 780 names and shapes, without the numbers."""
    width, mlp = 3072, 12288

    def linear(name: str, features_in: int, features_out: int) -> dict[str, tuple[int, ...]]:
        return {f"{name}.weight": (features_out, features_in), f"{name}.bias": (features_out,)}

    def norms(name: str) -> dict[str, tuple[int, ...]]:
        return {f"{name}.{which}_norm.scale": (128,) for which in ("query", "key")}

    shapes = linear("img_in", 64, width) | linear("txt_in", 4096, width)
    for name, features in (("time_in", 256), ("vector_in", 768), ("guidance_in", 256)):
        shapes |= linear(f"{name}.in_layer", features, width)
        shapes |= linear(f"{name}.out_layer", width, width)
    for block in range(19):
        for stream in ("img", "txt"):
            name = f"double_blocks.{block}.{stream}"
            shapes |= linear(f"{name}_mod.lin", width, 6 * width)
            shapes |= linear(f"{name}_attn.qkv", width, 3 * width)
            shapes |= norms(f"{name}_attn.norm")
            shapes |= linear(f"{name}_attn.proj", width, width)
            shapes |= linear(f"{name}_mlp.0", width, mlp) | linear(f"{name}_mlp.2", mlp, width)
    for block in range(38):
        name = f"single_blocks.{block}"
        shapes |= linear(f"{name}.linear1", width, 3 * width + mlp)
        shapes |= linear(f"{name}.linear2", width + mlp, width)
        shapes |= linear(f"{name}.modulation.lin", width, 3 * width) | norms(f"{name}.norm")
    shapes |= linear("final_layer.linear", width, 64)
    shapes |= linear("final_layer.adaLN_modulation.1", width, 2 * width)
    return {key: torch.empty(shape, device="meta") for key, shape in shapes.items()}


@pytest.mark.parametrize("prefix", ["", "model.diffusion_model."])
def test_flux1_dev_with_black_forest_labs_keys(
    prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At full size, without its 24 GB: the reading itself and the check for NaN are left out."""
    state = {f"{prefix}{key}": tensor for key, tensor in black_forest_keys().items()}
    assert len(state) == 780
    monkeypatch.setattr(components, "load_file", lambda _: state)
    file = Path("flux1-dev.safetensors")
    loaded = components._from_file("transformer", file, torch.bfloat16, weights=True)
    with torch.device("meta"):
        true = FluxTransformer2DModel(guidance_embeds=True)
    assert shape(loaded) == shape(true)
    assert loaded.num_parameters() == true.num_parameters() == 11_901_408_320
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.bfloat16}


def ldm_keys(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A diffusers VAE with four levels as ``ae.safetensors`` names it; its attention is 1x1."""
    renamed = {}
    for key, tensor in state.items():
        for pattern, name in (
            (r"down_blocks\.(\d)\.resnets", r"down.\1.block"),
            (r"down_blocks\.(\d)\.downsamplers\.0", r"down.\1.downsample"),
            (r"up_blocks\.(\d)\.upsamplers\.0", lambda m: f"up.{3 - int(m[1])}.upsample"),
            (r"up_blocks\.(\d)\.resnets", lambda m: f"up.{3 - int(m[1])}.block"),
            (r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}"),
            (r"mid_block\.attentions\.0\.group_norm", "mid.attn_1.norm"),
            (r"mid_block\.attentions\.0\.to_([qkv])", r"mid.attn_1.\1"),
            (r"mid_block\.attentions\.0\.to_out\.0", "mid.attn_1.proj_out"),
            ("conv_norm_out", "norm_out"),
            ("conv_shortcut", "nin_shortcut"),
        ):
            key = re.sub(pattern, name, key)
        attention = re.search(r"attn_1\.(q|k|v|proj_out)\.weight", key)
        renamed[key] = tensor[..., None, None] if attention else tensor
    return renamed


def test_a_vae_as_black_forest_labs_names_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(components, "FLUX_VAE", TINY_VAE)
    vae = AutoencoderKL(**TINY_VAE)
    state = ldm_keys(vae.state_dict())
    for key in ("encoder.down.0.downsample.conv.weight", "decoder.up.3.block.0.norm1.weight"):
        assert key in state
    loaded = load_model("vae", saved(state, tmp_path), torch.float32)
    assert same(loaded, vae)
    assert same(load_model("vae", saved(vae.state_dict(), tmp_path), torch.float32), vae)
    assert loaded.config.scaling_factor == 0.3611


def test_siglip_as_comfyui_keeps_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(components, "SIGLIP_SO400M", SIGLIP)
    tower = tiny_siglip()
    state = {
        f"vision_model.{key.removeprefix('vision_model.')}": tensor
        for key, tensor in tower.state_dict().items()
    }
    text = {"text_model.embeddings.weight": torch.zeros(2), "logit_scale": torch.zeros(1)}
    loaded = load_model("image_encoder", saved({**state, **text}, tmp_path), torch.float32)
    assert same(loaded, tower)
    pixels = torch.rand(1, 3, 32, 32)
    assert torch.equal(loaded(pixels).last_hidden_state, tower(pixels).last_hidden_state)


def test_the_published_sizes() -> None:
    with torch.device("meta"):
        vae = AutoencoderKL(**components.FLUX_VAE)
        tower = SiglipVisionModel(SiglipVisionConfig(**components.SIGLIP_SO400M))
    assert vae.num_parameters() == 83_819_683
    assert len(vae.state_dict()) == 244
    assert tower.num_parameters() == 428_225_600


def test_weights_come_in_the_dtype_asked_for(tmp_path: Path) -> None:
    path = saved(tiny_controlnet().half().state_dict(), tmp_path)
    for dtype in (torch.float32, torch.bfloat16):
        loaded = load_model("controlnet", path, dtype)
        assert {parameter.dtype for parameter in loaded.parameters()} == {dtype}


def assert_skeleton(skeleton: nn.Module, whole: nn.Module) -> None:
    assert {parameter.device.type for parameter in skeleton.parameters()} == {"meta"}
    outlines = [
        {name: (p.shape, p.dtype) for name, p in model.named_parameters()}
        for model in (skeleton, whole)
    ]
    assert outlines[0] == outlines[1]


@pytest.mark.parametrize("tower", ["siglip", "lite"])
def test_a_skeleton_needs_no_weights(tower: Literal["siglip", "lite"], tmp_path: Path) -> None:
    """Of a folder, its config.json is enough."""
    tiny_pipeline(tower).save_pretrained(tmp_path)
    whole = {name: load_model(name, tmp_path, torch.bfloat16) for name in components.MODELS}
    for file in tmp_path.rglob("*.safetensors"):
        file.unlink()
    for name, model in whole.items():
        assert_skeleton(load_model(name, tmp_path, torch.bfloat16, weights=False), model)


def test_a_skeleton_of_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(components, "FLUX_VAE", TINY_VAE)
    monkeypatch.setattr(components, "SIGLIP_SO400M", SIGLIP)
    tower = tiny_siglip().state_dict()
    pipeline, vae = tiny_pipeline(), AutoencoderKL(**TINY_VAE)
    for name, state in (
        ("transformer", pipeline.transformer.state_dict()),
        ("controlnet", pipeline.controlnet.state_dict()),
        ("image_embedder", pipeline.image_embedder.state_dict()),
        ("vae", ldm_keys(vae.state_dict())),
        ("image_encoder", {f"vision_model.{k}": v for k, v in tower.items()}),
    ):
        path = saved(state, tmp_path)
        skeleton = load_model(name, path, torch.bfloat16, weights=False)
        assert_skeleton(skeleton, load_model(name, path, torch.bfloat16))


def test_files_that_are_something_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(components, "SIGLIP_SO400M", SIGLIP)
    transformer, controlnet = tiny_transformer().state_dict(), tiny_controlnet().state_dict()
    few = {key: controlnet[key] for key in list(controlnet)[:-1]}
    wrong = {**controlnet, "x_embedder.bias": torch.zeros(7)}
    for name, state, message in (
        ("image_embedder", transformer, "image_embedder cannot be read .* no 'redux_up.weight'"),
        ("controlnet", transformer, "lacks controlnet_"),
        ("transformer", controlnet, "lacks norm_out"),
        ("controlnet", few, rf"lacks {list(controlnet)[-1]} \(1 in total\)"),
        ("controlnet", wrong, r"wrong shape at x_embedder.bias: \(7,\) instead of \(128,\)"),
        ("vae", tiny_vae().state_dict(), "wrong shape at decoder.conv_in.bias"),
        ("image_encoder", transformer, "lacks"),
    ):
        path = saved(state, tmp_path)
        with pytest.raises(ColorFluxError, match=message) as caught:
            load_model(name, path, torch.float32)
        assert str(path) in str(caught.value)
        assert "\n" not in str(caught.value)
