"""Nano in ComfyUI, the nodes that colorize with it, and small models of the kinds that do not fit.

For the tests that call ``need_comfyui``.
"""

from __future__ import annotations

import atexit
import functools
import json
from pathlib import Path
from typing import Any, NamedTuple

import comfy.cldm.cldm
import comfy.clip_vision
import comfy.latent_formats
import comfy.lora
import comfy.model_base
import comfy.sd
import comfy.supported_models
import comfy.t2i_adapter.adapter
import comfy.taesd.taesd
import folder_paths
import pytest
import torch
from comfy.controlnet import ControlNet, T2IAdapter
from comfy.ldm.flux.controlnet import ControlNetFlux
from comfy.model_management import unload_all_models
from comfy.model_patcher import ModelPatcher
from comfy.ops import manual_cast
from diffusers import AutoencoderKL
from torch import Tensor, nn

from colorflux_core.model.lora import add_lora
from colorflux_core.model.pipeline import ColorFluxPipeline
from tests.nano_models import tiny_pipeline
from tests.nodes.node_runs import run
from tests.nodes.pack import node_classes


class Models(NamedTuple):
    """What Load ColorFLUX Bundle gives, in its order."""

    model: ModelPatcher
    control_net: Any
    style_model: Any
    clip_vision: Any
    vae: Any
    canvas_pixels: int


@functools.cache
def nano(lora_strength: float = 1.0) -> Models:
    return Models(*run("ColorFlux_LoadBundle", lora_strength=lora_strength))


# What is loaded when Python ends would complain of ComfyUI's modules being gone.
atexit.register(unload_all_models)
atexit.register(nano.cache_clear)


def use_folder(monkeypatch: pytest.MonkeyPatch, kind: str, folder: Path) -> None:
    """Make ``folder`` the only one of its kind in ComfyUI's models."""
    node_classes()  # They register models/colorflux, once and for all.
    kinds = ([str(folder)], {".safetensors"})
    monkeypatch.setitem(folder_paths.folder_names_and_paths, kind, kinds)


def visual_prompt(models: Models, image: Tensor, **inputs: Any) -> Any:
    """The CONDITIONING of Redux Visual Prompt; ``inputs`` go before the bundle's."""
    wired = {"clip_vision": models.clip_vision, "style_model": models.style_model}
    return run("ColorFlux_ReduxVisualPrompt", **wired | inputs, image=image)[0]


def gray_control(models: Models, conditioning: Any, image: Tensor, **inputs: Any) -> Any:
    """The CONDITIONING of Apply Grayscale ControlNet; ``inputs`` go before the bundle's."""
    wired = {"control_net": models.control_net, "vae": models.vae}
    given = {"conditioning": conditioning, "image": image}
    return run("ColorFlux_ApplyGrayControlNet", **wired | inputs, **given)[0]


def sample(
    models: Models,
    conditioning: Any,
    latent: dict[str, Tensor],
    size: tuple[int, int],
    steps: int = 8,
) -> Tensor:
    """KSampler's latents at (width, height), set as in our workflows."""
    width, height = size
    (model,) = run("ModelSamplingFlux", model=models.model, width=width, height=height)
    (sampled,) = run(
        "KSampler",
        model=model,
        positive=conditioning,
        negative=conditioning,
        latent_image=latent,
        steps=steps,
        cfg=1.0,
        sampler_name="euler",
        scheduler="simple",
    )
    return sampled["samples"]


def colorized(
    models: Models,
    photos: Tensor,
    *,
    canvas: str = "square",
    pixels: int = 128,
    same_noise: bool = False,
    **prompt: Any,
) -> Tensor:
    """The decoded canvas of IMAGEs, as our workflows wire it; ``prompt`` goes to Redux."""
    gray, latent, *size = run("ColorFlux_PreparePhoto", image=photos, canvas=canvas, pixels=pixels)
    if same_noise:
        (latent,) = run("LatentBatchSeedBehavior", samples=latent, seed_behavior="fixed")
    conditioning = gray_control(models, visual_prompt(models, gray, **prompt), gray)
    latents = sample(models, conditioning, latent, (size[0], size[1]))
    return run("VAEDecode", samples={"samples": latents}, vae=models.vae)[0]


def siglip_pipeline(**parts: Any) -> ColorFluxPipeline:
    """The tiny pipeline, with a VAE as narrow as ComfyUI's class allows, and a LoRA."""
    tiny = tiny_pipeline("siglip", controlnet=parts.pop("controlnet", None))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        vae = AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            block_out_channels=(32, 32, 64, 64),
            layers_per_block=1,
            latent_channels=16,
            scaling_factor=0.3611,
            shift_factor=0.1159,
            **{"norm_num_groups": 8, **parts},
        )
        for parameter in add_lora(tiny.transformer, rank=2):
            parameter.data.normal_(std=0.1)
    tiny.register_modules(vae=vae.eval())
    return tiny


def lora_deltas(model: ModelPatcher) -> dict[str, Tensor]:
    """What a MODEL's LoRAs add to its weights, as ComfyUI works it out when it samples."""
    shapes = {key: weight.shape for key, weight in model.model.state_dict().items()}
    return {
        key: comfy.lora.calculate_weight(patches, torch.zeros(shapes[key]), key)
        for key, patches in model.patches.items()
    }


FLUX_DEV = {  # but for the number of blocks
    "in_channels": 16,
    "out_channels": 16,
    "patch_size": 2,
    "vec_in_dim": 768,
    "context_in_dim": 4096,
    "hidden_size": 3072,
    "mlp_ratio": 4.0,
    "num_heads": 24,
    "depth": 1,
    "depth_single_blocks": 1,
    "axes_dim": [16, 56, 56],
    "theta": 10_000,
    "qkv_bias": True,
    "guidance_embed": True,
}


def flux_dev() -> ModelPatcher:
    """FLUX.1-dev's width, with one block of each kind, without memory."""
    config = comfy.supported_models.Flux({"image_model": "flux", **FLUX_DEV})
    return _patcher(comfy.model_base.Flux(config, device=torch.device("meta")))


SD_UNET = {
    "image_size": 32,
    "in_channels": 4,
    "model_channels": 32,
    "num_res_blocks": [1, 1],
    "channel_mult": [1, 2],
    "num_head_channels": 32,
    "use_spatial_transformer": True,
    "transformer_depth": [1, 1],
    "transformer_depth_middle": 1,
    "context_dim": 64,
    "legacy": False,
}
TINY_FLUX = FLUX_DEV | {
    "vec_in_dim": 16,
    "context_in_dim": 32,
    "hidden_size": 128,
    "num_heads": 1,
}


def sdxl() -> ModelPatcher:
    """A MODEL that is not FLUX.1."""
    shape = SD_UNET | {
        "out_channels": 4,
        "transformer_depth_output": [1, 1, 1, 1],
        "num_classes": "sequential",
        "adm_in_channels": 2816,
    }
    return _patcher(comfy.model_base.SDXL(comfy.supported_models.SDXL(shape)))


def sd_controlnet() -> ControlNet:
    """A CONTROL_NET for Stable Diffusion."""
    model = comfy.cldm.cldm.ControlNet(**SD_UNET, hint_channels=3, operations=manual_cast)
    return ControlNet(model)


def t2i_adapter() -> T2IAdapter:
    """A CONTROL_NET that has no ControlNet in it."""
    adapter = comfy.t2i_adapter.adapter.Adapter(cin=64, channels=[8, 8, 8, 8])
    return T2IAdapter(adapter, 1, 8, "nearest-exact")


def xlabs_controlnet() -> ControlNet:
    """A CONTROL_NET for FLUX.1 that reads pixels."""
    return ControlNet(ControlNetFlux(operations=manual_cast, **TINY_FLUX))


def union_controlnet(modes: int) -> ControlNet:
    """A CONTROL_NET for FLUX.1's latents, for several kinds of images."""
    model = ControlNetFlux(
        latent_input=True, num_union_modes=modes, operations=manual_cast, **TINY_FLUX
    )
    return ControlNet(model, latent_format=comfy.latent_formats.Flux())


def sd_style_model() -> comfy.sd.StyleModel:
    """A STYLE_MODEL that is not Redux."""
    adapter = comfy.t2i_adapter.adapter.StyleAdapter(
        width=32, context_dim=24, num_head=2, n_layes=1, num_token=2
    )
    return comfy.sd.StyleModel(adapter)


def sd_vae() -> comfy.sd.VAE:
    """A VAE with 4 latent channels."""
    return comfy.sd.VAE(sd=comfy.taesd.taesd.TAESD(latent_channels=4).state_dict())


def clip_vision(folder: Path, width: int = 64) -> comfy.clip_vision.ClipVisionModel:
    """A CLIP_VISION of ComfyUI's own class; its config is written to ``folder``."""
    config = {
        "model_type": "clip_vision_model",
        "hidden_size": width,
        "intermediate_size": width,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_channels": 3,
        "image_size": 28,
        "patch_size": 14,
        "projection_dim": 32,
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-5,
    }
    file = folder / "clip_vision.json"
    file.write_text(json.dumps(config), encoding="utf-8")
    return comfy.clip_vision.ClipVisionModel(file)


def _patcher(model: nn.Module) -> ModelPatcher:
    cpu = torch.device("cpu")
    return ModelPatcher(model, load_device=cpu, offload_device=cpu)
