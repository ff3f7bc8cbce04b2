"""A tiny SD-Turbo, and S3Diff weights for it in the layout in which they are published."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel

from colorflux_core.s3diff.convert import convert
from colorflux_core.s3diff.model import S3Diff

UNET = {
    "sample_size": 8,
    "block_out_channels": (16, 32, 32, 32),
    "attention_head_dim": (2, 4, 4, 4),
    "cross_attention_dim": 24,
    "use_linear_projection": True,
    "layers_per_block": 1,
    "norm_num_groups": 8,
}
VAE = {
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "block_out_channels": (8, 8, 16, 16),
    "layers_per_block": 1,
    "norm_num_groups": 4,
}
TEXT = {
    "hidden_size": 24,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "vocab_size": 49408,
}
RANK_UNET, RANK_VAE = 4, 3
UNET_TARGETS = [
    *("to_k", "to_q", "to_v", "to_out.0", "conv", "conv1", "conv2", "conv_shortcut", "conv_out"),
    *("proj_in", "proj_out", "ff.net.2", "ff.net.0.proj"),
]
VAE_TARGETS = (
    r"^encoder\..*(conv1|conv2|conv_in|conv_shortcut|conv|conv_out|to_k|to_q|to_v|to_out\.0)$"
)


def tiny_networks() -> tuple[UNet2DConditionModel, AutoencoderKL]:
    torch.manual_seed(0)
    return UNet2DConditionModel(**UNET).eval(), AutoencoderKL(**VAE).eval()


def save_sd_turbo(folder: Path) -> Path:
    """The tiny SD-Turbo as a diffusers folder, without a tokenizer, which its prompts need not."""
    unet, vae = tiny_networks()
    unet.save_pretrained(folder / "unet")
    vae.save_pretrained(folder / "vae")
    CLIPTextModel(CLIPTextConfig(**TEXT)).eval().save_pretrained(folder / "text_encoder")
    return folder


def published() -> dict[str, Any]:
    """What ``s3diff.pkl`` holds, random, for the tiny SD-Turbo."""
    torch.manual_seed(1)
    model = S3Diff(*tiny_networks(), torch.zeros(2, 77, 24), RANK_UNET, RANK_VAE)
    state = {
        key: torch.randn_like(tensor) / tensor[0].numel() ** 0.5
        for key, tensor in model.trained.items()
    }

    def part(prefix: str, adapter: str = "") -> dict[str, Tensor]:
        return {
            key.removeprefix(prefix).replace(".weight", f"{adapter}.weight")
            if ".lora_" in key
            else key.removeprefix(prefix): tensor
            for key, tensor in state.items()
            if key.startswith(prefix)
        }

    return {
        "unet_lora_target_modules": UNET_TARGETS,
        "vae_lora_target_modules": VAE_TARGETS,
        "rank_unet": RANK_UNET,
        "rank_vae": RANK_VAE,
        "state_dict_unet": part("unet.", ".default"),
        "state_dict_vae": part("vae.", ".vae_skip"),
        "w": torch.nn.Parameter(state["frequencies"], requires_grad=False),
        "state_embeddings": {
            f"state_dict_{network}_block": part(f"{network}_modulator.block_embeddings.")
            for network in ("vae", "unet")
        },
    } | {
        f"state_dict_{network}_{name}": part(f"{network}_modulator.{name}.")
        for network in ("vae", "unet")
        for name in ("de_mlp", "block_mlp", "fuse_mlp")
    }


def published_de_net() -> dict[str, Tensor]:
    """What ``de_net.pth`` holds, random."""
    torch.manual_seed(2)
    state = S3Diff(*tiny_networks(), torch.zeros(0), 1, 1).de_net.state_dict()
    return {key: torch.randn_like(tensor) * 0.05 for key, tensor in state.items()}


def save_published(folder: Path) -> tuple[Path, Path]:
    """``s3diff.pkl`` and ``de_net.pth``."""
    s3diff, de_net = folder / "s3diff.pkl", folder / "de_net.pth"
    torch.save(published(), s3diff)
    torch.save(published_de_net(), de_net)
    return s3diff, de_net


def save_converted(folder: Path) -> Path:
    """What the command makes of them."""
    convert(*save_published(folder), folder / "s3diff.safetensors", UNET, VAE)
    return folder / "s3diff.safetensors"
