"""Load the parts of a model, each from a diffusers folder or the single file it is published as."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    FluxControlNetModel,
    FluxTransformer2DModel,
    ModelMixin,
)
from diffusers.loaders.single_file_utils import (
    convert_flux_transformer_checkpoint_to_diffusers,
    convert_ldm_vae_checkpoint,
)
from diffusers.pipelines.flux.modeling_flux import ReduxImageEncoder
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor
from transformers import PreTrainedModel, SiglipVisionConfig, SiglipVisionModel

from ..errors import ColorFluxError
from ..lite_vision import LiteVisionConfig, LiteVisionModel
from .weights import explained, require_finite, require_fit, require_same_layout

# The only import of an image processor. It must resize with Pillow, as in training; what
# transformers 5 calls SiglipImageProcessor uses torchvision, and prints a notice without it.
try:
    from transformers import SiglipImageProcessorPil as SiglipImageProcessor
except ImportError:  # transformers 4, which has no other.
    from transformers import SiglipImageProcessor

DIFFUSERS_MODELS = {
    "transformer": FluxTransformer2DModel,
    "vae": AutoencoderKL,
    "controlnet": FluxControlNetModel,
    "image_embedder": ReduxImageEncoder,
}
VISION_TOWERS = {
    SiglipVisionConfig.model_type: SiglipVisionModel,
    LiteVisionConfig.model_type: LiteVisionModel,
}
MODELS = (*DIFFUSERS_MODELS, "image_encoder")

FLUX_SCHEDULE = {
    "shift": 3.0,
    "use_dynamic_shifting": True,
    "base_shift": 0.5,
    "max_shift": 1.15,
    "base_image_seq_len": 256,
    "max_image_seq_len": 4096,
}
"""FLUX.1-dev's scheduler."""

FLUX_VAE = {
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "block_out_channels": (128, 256, 512, 512),
    "layers_per_block": 2,
    "latent_channels": 16,
    "norm_num_groups": 32,
    "sample_size": 1024,
    "scaling_factor": 0.3611,
    "shift_factor": 0.1159,
    "use_quant_conv": False,
    "use_post_quant_conv": False,
}
"""``ae.safetensors``."""

SIGLIP_SO400M = {
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "num_hidden_layers": 27,
    "num_attention_heads": 16,
    "image_size": 384,
    "patch_size": 14,
}
"""``sigclip_vision_patch14_384.safetensors``."""


SIGLIP_PREPROCESSING = {"size": {"height": 384, "width": 384}}
"""Resized without cropping; mean and standard deviation are 0.5, the processor's defaults."""


def load_model(
    name: str, path: Path, dtype: torch.dtype, weights: bool = True
) -> ModelMixin | PreTrainedModel:
    """Load one of ``MODELS`` in ``dtype`` on the CPU.

    Args:
        name: The part.
        path: Its diffusers folder, a pipeline folder that contains it, or a single file: Redux,
            SigLIP with ``vision_model.`` keys, the ControlNet with diffusers' keys, or the
            transformer or VAE with diffusers' or Black Forest Labs' keys.
        dtype: Data type of the weights.
        weights: False creates the model on the meta device instead, without reading weights.

    Raises:
        ColorFluxError: when the part is missing, cannot be read, does not fit or has NaN or
            infinite weights.
    """
    path = part_path(name, path)
    with explained(name, path):
        if path.is_file():
            model = _from_file(name, path, dtype, weights)
        else:
            model = (_from_folder if weights else _skeleton)(name, path, dtype)
    if weights:
        require_finite(path, model.state_dict())
    return model.eval()


def load_feature_extractor(path: Path) -> SiglipImageProcessor:
    """Load the vision tower's preprocessing. Raises ColorFluxError as :func:`load_model`."""
    path = part_path("feature_extractor", path)
    with explained("feature_extractor", path):
        return SiglipImageProcessor.from_pretrained(path, local_files_only=True)


def load_scheduler(path: Path) -> FlowMatchEulerDiscreteScheduler:
    """Load the Euler scheduler. Raises ColorFluxError as :func:`load_model`."""
    path = part_path("scheduler", path)
    with explained("scheduler", path):
        return FlowMatchEulerDiscreteScheduler.from_pretrained(path, local_files_only=True)


def part_path(name: str, path: Path) -> Path:
    """The part's path, given that or a pipeline folder. Raises ColorFluxError if it is missing."""
    path = path / name if (path / name).is_dir() else path
    if not path.exists():
        raise ColorFluxError(f"The {name} is missing: {path} does not exist.")
    return path


def _from_folder(name: str, path: Path, dtype: torch.dtype) -> ModelMixin | PreTrainedModel:
    options: dict[str, Any] = {"ignore_mismatched_sizes": True, "output_loading_info": True}
    if name == "image_encoder":
        model, info = _tower(path, _config(path)).from_pretrained(
            path, local_files_only=True, use_safetensors=True, **options
        )
        model = model.to(dtype)
    else:
        model, info = DIFFUSERS_MODELS[name].from_pretrained(
            path, local_files_only=True, use_safetensors=True, torch_dtype=dtype, **options
        )
    require_fit(path, info["missing_keys"], info["unexpected_keys"], info["mismatched_keys"])
    return model


def _skeleton(name: str, path: Path, dtype: torch.dtype) -> ModelMixin | PreTrainedModel:
    config = _config(path)
    with torch.device("meta"):
        if name == "image_encoder":
            tower = _tower(path, config)
            return tower(tower.config_class(**config)).to(dtype)
        return DIFFUSERS_MODELS[name].from_config(config).to(dtype)


def _config(path: Path) -> dict[str, Any]:
    return json.loads((path / "config.json").read_text(encoding="utf-8"))


def _tower(path: Path, config: Mapping[str, Any]) -> type[PreTrainedModel]:
    if config["model_type"] not in VISION_TOWERS:
        raise ColorFluxError(
            f"{path} holds a {config['model_type']}; the vision tower must be "
            f"{' or '.join(VISION_TOWERS)}."
        )
    return VISION_TOWERS[config["model_type"]]


def _shapes(path: Path) -> dict[str, Tensor]:
    """The tensors of a file on the meta device."""
    with safe_open(path, "pt") as file:
        keys = file.keys()
        return {key: torch.empty(file.get_slice(key).get_shape(), device="meta") for key in keys}


def _from_file(
    name: str, path: Path, dtype: torch.dtype, weights: bool
) -> ModelMixin | PreTrainedModel:
    state = {
        key.removeprefix("model.diffusion_model."): tensor.to(dtype)
        for key, tensor in (load_file(path) if weights else _shapes(path)).items()
    }
    if name == "image_encoder":
        return _siglip(path, state) if weights else _siglip_skeleton(dtype)
    if name == "transformer" and "double_blocks.0.img_attn.qkv.weight" in state:
        state = convert_flux_transformer_checkpoint_to_diffusers(state)
    if name == "vae":
        config: dict[str, Any] = FLUX_VAE
        if "encoder.down.0.block.0.conv1.weight" in state:
            state = convert_ldm_vae_checkpoint(state, config)
    elif name == "image_embedder":
        config = {
            "redux_dim": state["redux_up.weight"].shape[1],
            "txt_in_features": state["redux_down.weight"].shape[0],
        }
    else:
        config = _flux_config(state)
    with torch.device("meta"):
        model = DIFFUSERS_MODELS[name](**config)
    require_same_layout(path, model.state_dict(), state)
    model.load_state_dict(state, assign=True)
    return model


def _siglip_skeleton(dtype: torch.dtype) -> SiglipVisionModel:
    with torch.device("meta"):
        return SiglipVisionModel(SiglipVisionConfig(**SIGLIP_SO400M)).to(dtype)


def _siglip(path: Path, state: Mapping[str, Tensor]) -> SiglipVisionModel:
    prefix = "vision_model."
    model, info = SiglipVisionModel.from_pretrained(
        None,
        config=SiglipVisionConfig(**SIGLIP_SO400M),
        state_dict={key: tensor for key, tensor in state.items() if key.startswith(prefix)},
        local_files_only=True,
        ignore_mismatched_sizes=True,
        output_loading_info=True,
    )
    require_fit(path, info["missing_keys"], (), info["mismatched_keys"])
    return model


def _flux_config(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """The config of a FLUX transformer or ControlNet, from weights with diffusers' keys."""

    def count(blocks: str) -> int:
        return len({key.split(".")[1] for key in state if key.startswith(f"{blocks}.")})

    width, in_channels = state["x_embedder.weight"].shape
    config = {
        "in_channels": in_channels,
        "num_layers": count("transformer_blocks"),
        "num_single_layers": count("single_transformer_blocks"),
        "num_attention_heads": width // 128,
        "joint_attention_dim": state["context_embedder.weight"].shape[1],
        "pooled_projection_dim": state["time_text_embed.text_embedder.linear_1.weight"].shape[1],
        "guidance_embeds": "time_text_embed.guidance_embedder.linear_1.weight" in state,
    }
    if "controlnet_mode_embedder.weight" in state:
        config["num_mode"] = len(state["controlnet_mode_embedder.weight"])
    return config
