"""SD-Turbo as a single file: its tensors under the names that Stable Diffusion's authors gave."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

SD_TURBO = "conditioner.embedders.0.model."
STABLE_DIFFUSION_2 = "cond_stage_model.model."

State = Mapping[str, Tensor]

UNET_ENDS = {
    "conv_in": "input_blocks.0.0",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
UNET_PARTS = {
    "resnets": {
        "norm1": "in_layers.0",
        "conv1": "in_layers.2",
        "time_emb_proj": "emb_layers.1",
        "norm2": "out_layers.0",
        "conv2": "out_layers.3",
        "conv_shortcut": "skip_connection",
    },
    "downsamplers": {"conv": "op"},
}
VAE_NAMES = {
    r"down_blocks\.(\d)\.resnets": r"down.\1.block",
    r"down_blocks\.(\d)\.downsamplers\.0": r"down.\1.downsample",
    r"up_blocks\.(\d)\.resnets": r"up.\1.block",
    r"up_blocks\.(\d)\.upsamplers\.0": r"up.\1.upsample",
    r"mid_block\.resnets\.0": "mid.block_1",
    r"mid_block\.resnets\.1": "mid.block_2",
    r"mid_block\.attentions\.0\.group_norm": "mid.attn_1.norm",
    r"mid_block\.attentions\.0\.to_([qkv])": r"mid.attn_1.\1",
    r"mid_block\.attentions\.0\.to_out\.0": "mid.attn_1.proj_out",
    "conv_norm_out": "norm_out",
    "conv_shortcut": "nin_shortcut",
}
TEXT_NAMES = {
    r"(text_model\.)?embeddings\.token_embedding": "token_embedding",
    r"(text_model\.)?embeddings\.position_embedding\.weight": "positional_embedding",
    r"(text_model\.)?final_layer_norm": "ln_final",
    r"(text_model\.)?encoder\.layers": "transformer.resblocks",
    r"layer_norm([12])": r"ln_\1",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "self_attn": "attn",
}


def single_file(unet: State, vae: State, text: State, text_prefix: str) -> dict[str, Tensor]:
    """The whole file, given networks with the names of diffusers and transformers."""
    return {
        **{f"model.diffusion_model.{_unet_name(key, unet)}": unet[key] for key in unet},
        **{f"first_stage_model.{key}": tensor for key, tensor in _vae(vae).items()},
        **{f"{text_prefix}{key}": tensor for key, tensor in _text(text).items()},
        "alphas_cumprod": torch.zeros(1000),
    }


def _unet_name(key: str, keys: State) -> str:
    module, leaf = key.rsplit(".", 1)
    if module in UNET_ENDS:
        return f"{UNET_ENDS[module]}.{leaf}"
    if module.startswith("mid_block."):
        _, kind, number, *inner = module.split(".")
        block = f"middle_block.{2 * int(number) if kind == 'resnets' else 1}"
    else:
        side, stage, kind, number, *inner = module.split(".")
        # Above and below its layers, each stage has a place for the change of resolution.
        places = 1 + sum(f"down_blocks.0.resnets.{i}.conv1.bias" in keys for i in range(9))
        place = places * int(stage) + (places - 1 if kind.endswith("samplers") else int(number))
        if side == "down_blocks":
            block = f"input_blocks.{1 + place}.{int(kind == 'attentions')}"
        else:
            attends = f"up_blocks.{stage}.attentions.0.norm.bias" in keys
            slot = {"resnets": 0, "attentions": 1, "upsamplers": 1 + attends}[kind]
            block = f"output_blocks.{place}.{slot}"
    names = UNET_PARTS.get(kind, {})
    return ".".join([block, *(names.get(part, part) for part in inner), leaf])


def _vae(state: State) -> dict[str, Tensor]:
    stages = sum(f"decoder.up_blocks.{i}.resnets.0.conv1.bias" in state for i in range(9))
    renamed = {}
    for key, tensor in state.items():
        name = _renamed(key, VAE_NAMES)
        # Counted from the highest resolution, in the decoder too.
        name = re.sub(r"up\.(\d)", lambda match: f"up.{stages - 1 - int(match[1])}", name)
        is_attention = re.search(r"attn_1\.(q|k|v|proj_out)\.weight", name)
        renamed[name] = tensor[:, :, None, None] if is_attention else tensor
    return renamed


def _text(state: State) -> dict[str, Tensor]:
    renamed = {_renamed(key, TEXT_NAMES): tensor for key, tensor in state.items()}
    for key in [key for key in renamed if ".q_proj." in key]:
        parts = [renamed.pop(key.replace(".q_proj.", f".{part}_proj.")) for part in "qkv"]
        renamed[re.sub(r"\.q_proj\.(\w+)", r".in_proj_\1", key)] = torch.cat(parts)
    layers = len([key for key in renamed if key.endswith("ln_1.bias")])
    for key in [key for key in renamed if ".resblocks.0." in key]:
        # Stable Diffusion 2 uses all layers but the last.
        last = key.replace(".resblocks.0.", f".resblocks.{layers}.")
        renamed[last] = torch.full_like(renamed[key], 9.0)
    width = renamed["ln_final.bias"].shape[0]
    return {**renamed, "text_projection": torch.eye(width), "logit_scale": torch.zeros(())}


def _renamed(key: str, names: Mapping[str, str]) -> str:
    for old, new in names.items():
        key = re.sub(old, new, key)
    return key
