"""Load SD-Turbo from a local diffusers folder or the published single file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.loaders.single_file_utils import (
    convert_ldm_unet_checkpoint,
    convert_ldm_vae_checkpoint,
    convert_open_clip_checkpoint,
)
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from ..bundles.weights import explained, require_finite, require_fit, require_same_layout
from ..errors import ColorFluxError

UNET = {
    "sample_size": 64,
    "block_out_channels": (320, 640, 1280, 1280),
    "attention_head_dim": (5, 10, 20, 20),
    "cross_attention_dim": 1024,
    "use_linear_projection": True,
}
VAE = {
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "block_out_channels": (128, 256, 512, 512),
    "layers_per_block": 2,
    "sample_size": 768,
}
TEXT = {
    "vocab_size": 49408,
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "projection_dim": 512,
    "num_hidden_layers": 23,
    "num_attention_heads": 16,
    "hidden_act": "gelu",
}

POSITIVE = (
    "A high-resolution, 8K, ultra-realistic image with sharp focus, vibrant colors, and natural "
    "lighting."
)
NEGATIVE = (
    "oil painting, cartoon, blur, dirty, messy, low quality, deformation, low resolution, "
    "oversmooth"
)
"""The prompts S3Diff was published with."""

# The single file has no tokenizer, so the CLIP tokens of these prompts are listed here.
_TOKENS = {
    POSITIVE: "320 1400 268 9977 267 279 330 267 8118 268 16157 2867 593 8157 4353 267 14270 5389 "
    "267 537 3288 5799 269",
    NEGATIVE: "2870 3086 267 7651 267 27976 267 7615 267 15987 267 1042 3027 267 561 2510 267 1042 "
    "9977 267 1658 8990",
}
_START, _END, _PADDING, _LENGTH = 49406, 49407, 0, 77


def load_networks(
    path: Path, dtype: torch.dtype = torch.float32
) -> tuple[UNet2DConditionModel, AutoencoderKL]:
    """Load SD-Turbo's UNet and VAE on the CPU.

    Args:
        path: A diffusers folder, or a single file in the published layout or that of Stable
            Diffusion 2.
        dtype: The dtype of the loaded weights.

    Raises:
        ColorFluxError: if a part is missing, unreadable, for another model or not finite.
    """
    if path.is_dir():
        return (
            _from_folder(UNet2DConditionModel, path / "unet", torch_dtype=dtype),
            _from_folder(AutoencoderKL, path / "vae", torch_dtype=dtype),
        )
    state = _single_file(path)
    with init_empty_weights():
        unet, vae = UNet2DConditionModel(**UNET), AutoencoderKL(**VAE)
    with explained("SD-Turbo checkpoint", path):
        unet_weights = convert_ldm_unet_checkpoint(state, dict(unet.config))
        vae_weights = convert_ldm_vae_checkpoint(state, dict(vae.config))
    _fill(unet, unet_weights, f"The UNet in {path}", dtype)
    _fill(vae, vae_weights, f"The VAE in {path}", dtype)
    return unet, vae


def text_embeddings(path: Path, prompts: Sequence[str] = (POSITIVE, NEGATIVE)) -> Tensor:
    """Encode prompts with SD-Turbo's text encoder: float32 (prompts, 77, width).

    Raises:
        ColorFluxError: as :func:`load_networks`, and for a custom prompt without a tokenizer.
    """
    tokens = torch.tensor([_tokens(path, prompt) for prompt in prompts])
    encoder = _text_encoder(path)
    with torch.no_grad():
        return encoder(tokens).last_hidden_state


def _tokens(path: Path, prompt: str) -> list[int]:
    if prompt in _TOKENS:
        words = [int(token) for token in _TOKENS[prompt].split()]
    elif (path / "tokenizer").is_dir():
        with explained("tokenizer of SD-Turbo", path / "tokenizer"):
            tokenizer = CLIPTokenizer.from_pretrained(path / "tokenizer", local_files_only=True)
        words = tokenizer(prompt, add_special_tokens=False).input_ids
    else:
        raise ColorFluxError(
            f"{path} has no tokenizer for custom prompts: pass SD-Turbo's diffusers folder."
        )
    kept = [_START, *words[: _LENGTH - 2], _END]
    return kept + [_PADDING] * (_LENGTH - len(kept))


def _text_encoder(path: Path) -> CLIPTextModel:
    if path.is_dir():
        return _from_folder(CLIPTextModel, path / "text_encoder").float()
    state = _single_file(path)
    with init_empty_weights():
        encoder = CLIPTextModel(CLIPTextConfig(**TEXT))
    with explained("SD-Turbo checkpoint", path):
        weights = convert_open_clip_checkpoint(encoder, state)
    names = encoder.state_dict().keys()
    if "final_layer_norm.bias" in names:  # transformers 5
        weights = {key.removeprefix("text_model."): tensor for key, tensor in weights.items()}
    # The file also contains the last layer, which Stable Diffusion 2 does not use.
    used = {key: tensor for key, tensor in weights.items() if key in names}
    _fill(encoder, used, f"The text encoder in {path}", torch.float32)
    return encoder


def _single_file(path: Path) -> dict[str, Tensor]:
    """Read all tensors, with the text encoder's keys renamed as in Stable Diffusion 2."""
    with explained("SD-Turbo checkpoint", path):
        state = load_file(path)
    return {
        key.replace("conditioner.embedders.0.model.", "cond_stage_model.model."): tensor
        for key, tensor in state.items()
    }


def _from_folder(kind: Any, part: Path, **options: Any) -> Any:
    if not part.is_dir():
        raise ColorFluxError(f"SD-Turbo is incomplete: {part} does not exist.")
    with explained(f"{part.name} of SD-Turbo", part):
        model, info = kind.from_pretrained(
            part,
            **options,
            local_files_only=True,
            use_safetensors=True,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
    require_fit(part, info["missing_keys"], info["unexpected_keys"], info["mismatched_keys"])
    require_finite(part, model.state_dict())
    return model.eval()


def _fill(
    network: nn.Module, weights: Mapping[str, Tensor], source: str, dtype: torch.dtype
) -> None:
    weights = {key: tensor.to(dtype) for key, tensor in weights.items()}
    require_same_layout(source, network.state_dict(), weights)
    require_finite(source, weights)
    network.load_state_dict(weights, assign=True)
    network.eval()
