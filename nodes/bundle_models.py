"""Loads a bundle's parts as ComfyUI's own objects, for models of any width and depth.

ComfyUI's loaders assume FLUX.1's full size and would misread nano and other small models. Here the
shapes come from the bundle's configs; everything else follows ComfyUI's loaders.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from textwrap import shorten
from typing import Any

import comfy.controlnet
import comfy.diffusers_convert
import comfy.latent_formats
import comfy.ldm.flux.controlnet
import comfy.ldm.flux.redux
import comfy.model_detection
import comfy.model_management as mm
import comfy.ops
import comfy.sd
import comfy.utils
import torch
from comfy.model_patcher import ModelPatcher
from safetensors import SafetensorError
from torch import Tensor, nn

from ..colorflux_core.bundles.components import load_feature_extractor, load_model
from ..colorflux_core.errors import ColorFluxError
from .clip_vision import BundleClipVision


@contextmanager
def _explained(part: str) -> Iterator[None]:
    """Converts library errors caused by a damaged part to a one-line ColorFluxError."""
    try:
        yield
    except mm.OOM_EXCEPTION:
        raise
    except (KeyError, OSError, RuntimeError, SafetensorError, TypeError, ValueError) as error:
        reason = f"there is no {error}" if isinstance(error, KeyError) else str(error)
        raise ColorFluxError(
            f"Load ColorFLUX Bundle: the bundle's {part} cannot be loaded: {shorten(reason, 200)}"
        ) from error


@_explained("transformer")
def load_transformer(bundle: Path, dtype: torch.dtype | None, fast: bool) -> ModelPatcher:
    """The MODEL; its weights are stored as ``dtype``, or as ComfyUI chooses if None.

    This and the other loaders raise ColorFluxError if the part is missing or damaged.
    """
    part = bundle / "transformer"
    weights, model_config = _flux(part)
    parameters = comfy.utils.calculate_parameters(weights)
    stored_as = comfy.utils.weight_dtype(weights)
    dtype = dtype or mm.unet_dtype(
        model_params=parameters,
        supported_dtypes=model_config.supported_inference_dtypes,
        weight_dtype=stored_as,
    )
    device, offload_device = mm.get_torch_device(), mm.unet_offload_device()
    manual_cast = mm.unet_manual_cast(dtype, device, model_config.supported_inference_dtypes)
    model_config.set_inference_dtype(dtype, manual_cast)
    model_config.optimizations["fp8"] = fast
    model_config.latent_format = _latent_format(bundle)
    model = model_config.get_model(weights).to(offload_device)
    model.diffusion_model.load_state_dict(weights)
    return ModelPatcher(model, load_device=device, offload_device=offload_device)


@_explained("controlnet")
def load_control_net(bundle: Path) -> comfy.controlnet.ControlNet:
    """The CONTROL_NET."""
    part, base = bundle / "controlnet", _config(bundle / "transformer")
    weights, model_config = _flux(part)
    device, offload_device = mm.get_torch_device(), mm.unet_offload_device()
    dtype = mm.unet_dtype(
        model_params=-1,  # As in ComfyUI's loader: a ControlNet's size does not matter here.
        supported_dtypes=model_config.supported_inference_dtypes,
        weight_dtype=comfy.utils.weight_dtype(weights),
    )
    manual_cast = mm.unet_manual_cast(dtype, device)
    model = comfy.ldm.flux.controlnet.ControlNetFlux(
        latent_input=True,
        num_union_modes=len(weights.get("controlnet_mode_embedder.weight", ())),
        control_latent_channels=weights["pos_embed_input.weight"].shape[1] // 4,
        operations=comfy.ops.pick_operations(dtype, manual_cast, disable_fast_fp8=True),
        device=offload_device,
        dtype=dtype,
        **model_config.unet_config,
    )
    model.main_model_double, model.main_model_single = base["num_layers"], base["num_single_layers"]
    model.load_state_dict(weights)
    return comfy.controlnet.ControlNet(
        model,
        compression_ratio=1,
        latent_format=_latent_format(bundle),
        load_device=device,
        manual_cast_dtype=manual_cast,
        extra_conds=["y", "guidance"],
    )


class BundleStyleModel(comfy.sd.StyleModel):
    """Redux, with the number of zero text tokens that preceded its prompt in training."""

    def __init__(self, model: nn.Module, text_tokens: int) -> None:
        super().__init__(model)
        self.text_tokens = text_tokens


@_explained("image_embedder")
def load_style_model(bundle: Path, text_tokens: int) -> BundleStyleModel:
    """The STYLE_MODEL."""
    part = bundle / "image_embedder"
    config = _config(part)
    redux = comfy.ldm.flux.redux.ReduxImageEncoder(config["redux_dim"], config["txt_in_features"])
    redux.load_state_dict(_weights(part))
    return BundleStyleModel(redux, text_tokens)


def load_clip_vision(bundle: Path) -> BundleClipVision:
    """The CLIP_VISION (SigLIP or nano's tower), with the bundle's own preprocessing."""
    # Not ComfyUI's text_encoder_dtype, which is a storage dtype: this tower computes in its dtype.
    half = mm.should_use_fp16(mm.text_encoder_device())
    encoder = load_model("image_encoder", bundle, torch.float16 if half else torch.float32)
    return BundleClipVision(encoder, load_feature_extractor(bundle))


@_explained("vae")
def load_vae(bundle: Path) -> comfy.sd.VAE:
    """The VAE."""
    part = bundle / "vae"
    config, weights = _config(part), _weights(part)
    for name, channels in (
        ("quant_conv", 2 * config["latent_channels"]),
        ("post_quant_conv", config["latent_channels"]),
    ):  # ComfyUI's class always has these layers: add identities if the file has none.
        weights.setdefault(f"{name}.weight", torch.eye(channels)[..., None, None])
        weights.setdefault(f"{name}.bias", torch.zeros(channels))
    first, *_ = widths = config["block_out_channels"]
    shape = {
        "double_z": True,
        "z_channels": config["latent_channels"],
        "resolution": 256,
        "in_channels": config["in_channels"],
        "out_ch": config["out_channels"],
        "ch": first,
        "ch_mult": [width // first for width in widths],
        "num_res_blocks": config["layers_per_block"],
        "attn_resolutions": [],
        "dropout": 0.0,
    }
    params = {"ddconfig": shape, "embed_dim": config["latent_channels"]}
    weights = comfy.diffusers_convert.convert_vae_state_dict(weights)
    vae = comfy.sd.VAE(sd=weights, config={"params": params})
    vae.first_stage_model.load_state_dict(weights)  # ComfyUI only warns about missing keys.
    vae.latent_channels = config["latent_channels"]
    for module in vae.first_stage_model.modules():
        if isinstance(module, nn.GroupNorm):  # ComfyUI's class hard-codes 32 groups.
            module.num_groups = config["norm_num_groups"]
    return vae


def _flux(part: Path) -> tuple[dict[str, Tensor], Any]:
    """A FLUX transformer's or ControlNet's weights with ComfyUI's keys, and its ComfyUI config."""
    config, stored = _config(part), _weights(part)
    weights = comfy.model_detection.convert_diffusers_mmdit(stored, "") or {}
    model_config = comfy.model_detection.model_config_from_unet(weights, "")
    if model_config is None:
        raise ColorFluxError(f"{part} is not a FLUX.1 model: the bundle is damaged.")
    model_config.unet_config |= {
        "context_in_dim": config["joint_attention_dim"],
        "hidden_size": config["num_attention_heads"] * config["attention_head_dim"],
        "num_heads": config["num_attention_heads"],
        "axes_dim": list(config["axes_dims_rope"]),
    }
    return weights | stored, model_config


@_explained("vae")
def _latent_format(bundle: Path) -> comfy.latent_formats.Flux:
    """The scaling of the bundle's latents; previews are disabled for VAEs other than FLUX.1's."""
    config, latent_format = _config(bundle / "vae"), comfy.latent_formats.Flux()
    scale, shift = config["scaling_factor"], config["shift_factor"] or 0.0
    if (scale, shift) != (latent_format.scale_factor, latent_format.shift_factor):
        latent_format.scale_factor, latent_format.shift_factor = scale, shift
        latent_format.latent_rgb_factors = latent_format.taesd_decoder_name = None
    return latent_format


def _config(part: Path) -> dict[str, Any]:
    return json.loads((part / "config.json").read_text(encoding="utf-8"))


def _weights(part: Path) -> dict[str, Tensor]:
    weights: dict[str, Tensor] = {}
    for file in sorted(part.glob("*.safetensors")):
        weights |= comfy.utils.load_torch_file(str(file), safe_load=True)
    if not weights:
        raise ColorFluxError(f"{part} has no weights: it contains no .safetensors file.")
    return weights
