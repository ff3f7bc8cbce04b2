"""SD-Turbo, from a diffusers folder or the single file it is published as; no hub is asked."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.loaders.single_file_utils import (
    convert_ldm_unet_checkpoint,
    convert_ldm_vae_checkpoint,
    convert_open_clip_checkpoint,
)
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from ..components import explained, require_fit
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
"""The prompts that S3Diff is published with."""

_START, _END, _PADDING, _LENGTH = 49406, 49407, 0, 77
# The single file has no tokenizer, so these two come with their tokens (CLIP's byte pairs).
_TOKENS = {
    POSITIVE: (
        *(320, 1400, 268, 9977, 267, 279, 330, 267, 8118, 268, 16157, 2867, 593, 8157, 4353, 267),
        *(14270, 5389, 267, 537, 3288, 5799, 269),
    ),
    NEGATIVE: (
        *(
            2870,
            3086,
            267,
            7651,
            267,
            27976,
            267,
            7615,
            267,
            15987,
            267,
            1042,
            3027,
            267,
            561,
            2510,
        ),
        *(267, 1042, 9977, 267, 1658, 8990),
    ),
}


def load_networks(
    path: Path, dtype: torch.dtype = torch.float32
) -> tuple[UNet2DConditionModel, AutoencoderKL]:
    """SD-Turbo's UNet and VAE on the CPU.

    Raises:
        ColorFluxError: when a part is missing, cannot be read or is not SD-Turbo's.
    """
    if path.is_dir():
        return _from_folder(UNet2DConditionModel, path / "unet", dtype), _from_folder(
            AutoencoderKL, path / "vae", dtype
        )
    with explained("SD-Turbo", path):
        state = load_file(path)
        with torch.device("meta"):
            unet, vae = UNet2DConditionModel(**UNET), AutoencoderKL(**VAE)
        _fill(unet, convert_ldm_unet_checkpoint(state, dict(unet.config)), path)
        _fill(vae, convert_ldm_vae_checkpoint(state, dict(vae.config)), path)
        return unet.to(dtype), vae.to(dtype)


def text_embeddings(path: Path, prompts: Sequence[str] = (POSITIVE, NEGATIVE)) -> Tensor:
    """What SD-Turbo's text encoder makes of the prompts, (prompts, 77, width), in float32.

    Raises:
        ColorFluxError: as :func:`load_networks`; also for other than the published prompts when
            there is no tokenizer beside the text encoder.
    """
    tokens = torch.tensor([_tokens(path, prompt) for prompt in prompts])
    with explained("text encoder of SD-Turbo", path):
        if path.is_dir():
            encoder = _from_folder(CLIPTextModel, path / "text_encoder", torch.float32)
        else:
            with torch.device("meta"):
                encoder = CLIPTextModel(CLIPTextConfig(**TEXT))
            state = convert_open_clip_checkpoint(encoder, load_file(path))
            encoder, info = CLIPTextModel.from_pretrained(
                None,
                config=CLIPTextConfig(**TEXT),
                state_dict=state,
                local_files_only=True,
                ignore_mismatched_sizes=True,
                output_loading_info=True,
            )
            require_fit(path, info["missing_keys"], (), info["mismatched_keys"])
    with torch.no_grad():
        return encoder.eval()(tokens).last_hidden_state


def _tokens(path: Path, prompt: str) -> list[int]:
    words = _TOKENS.get(prompt)
    if words is None:
        if not (path / "tokenizer").is_dir():
            raise ColorFluxError(
                f"{path} has no tokenizer for a prompt of your own: name a diffusers folder."
            )
        with explained("tokenizer of SD-Turbo", path):
            tokenizer = CLIPTokenizer.from_pretrained(path / "tokenizer", local_files_only=True)
        words = tokenizer(prompt, add_special_tokens=False).input_ids
    kept = [_START, *words[: _LENGTH - 2], _END]
    return kept + [_PADDING] * (_LENGTH - len(kept))


def _from_folder(kind: Any, part: Path, dtype: torch.dtype) -> Any:
    if not part.is_dir():
        raise ColorFluxError(f"SD-Turbo is not whole: there is no {part}.")
    with explained(f"{part.name} of SD-Turbo", part):
        model, info = kind.from_pretrained(
            part,
            local_files_only=True,
            use_safetensors=True,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
        missing, unexpected = info["missing_keys"], info["unexpected_keys"]
        require_fit(part, missing, unexpected, info["mismatched_keys"])
    return model.to(dtype).eval()


def _fill(model: nn.Module, state: dict[str, Tensor], path: Path) -> None:
    expected = model.state_dict()
    require_fit(
        path,
        expected.keys() - state.keys(),
        state.keys() - expected.keys(),
        [
            (key, state[key].shape, tensor.shape)
            for key, tensor in expected.items()
            if key in state and state[key].shape != tensor.shape
        ],
    )
    model.load_state_dict(state, assign=True)
    model.eval()
