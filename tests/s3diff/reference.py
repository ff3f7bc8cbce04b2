"""The arithmetic of S3Diff's public code, written out layer by layer and with nothing folded."""

from __future__ import annotations

import math
import re
from typing import Any

import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from torch import Tensor, nn
from torch.nn import functional as F

from tests.s3diff.models import UNET_TARGETS, VAE_TARGETS

Weights = dict[str, Any]
PEFT_ALPHA = 8


def degradation(weights: dict[str, Tensor], rgb: Tensor) -> Tensor:
    """DE-Net, (B, 2)."""

    def conv(x: Tensor, name: str, stride: int = 1) -> Tensor:
        return F.conv2d(x, weights[f"{name}.weight"], weights[f"{name}.bias"], stride, 1)

    def block(x: Tensor, name: str) -> Tensor:
        return x + conv(F.relu(conv(x, f"{name}.conv1")), f"{name}.conv2")

    degrees = []
    for tower in range(2):
        x = conv(rgb, f"conv_first.{tower}")
        for i in range(6):
            x = block(x, f"body.{tower}.{i}")
        x = conv(x, f"body.{tower}.6", stride=2)
        for i in (7, 8):
            x = block(x, f"body.{tower}.{i}")
        pooled = F.adaptive_avg_pool2d(x, 1).flatten(1)
        head = f"fc_degree.{tower}"
        hidden = F.relu(F.linear(pooled, weights[f"{head}.0.weight"], weights[f"{head}.0.bias"]))
        out = F.linear(hidden, weights[f"{head}.2.weight"], weights[f"{head}.2.bias"])
        degrees.append(torch.sigmoid(out).squeeze(-1))
    return torch.stack(degrees, dim=1)


def modulations(weights: Weights, network: str, degrees: Tensor, rank: int) -> Tensor:
    """(B, blocks, r, r)."""
    projected = degrees[..., None] * weights["w"][None, None, :] * 2 * math.pi
    projected = torch.cat([torch.sin(projected), torch.cos(projected)], dim=-1)
    projected = torch.cat([projected[:, 0], projected[:, 1]], dim=-1)
    de, block, fuse = (
        weights[f"state_dict_{network}_{name}"] for name in ("de_mlp", "block_mlp", "fuse_mlp")
    )
    embeddings = weights["state_embeddings"][f"state_dict_{network}_block"]["weight"]
    de_embed = F.relu(F.linear(projected, de["0.weight"], de["0.bias"]))
    block_embed = F.relu(F.linear(embeddings, block["0.weight"], block["0.bias"]))
    n, blocks = len(degrees), len(embeddings)
    both = torch.cat(
        [de_embed.unsqueeze(1).repeat(1, blocks, 1), block_embed.unsqueeze(0).repeat(n, 1, 1)], -1
    )
    return F.linear(both, fuse["weight"], fuse["bias"]).reshape(n, blocks, rank, rank)


def vae_block(name: str) -> int:
    part = name.split(".")
    return int(part[2]) if part[1] == "down_blocks" else -2 if part[1] == "mid_block" else -1


def unet_block(name: str) -> int:
    part = name.split(".")
    if part[0] == "down_blocks":
        return int(part[1])
    if part[0] == "mid_block":
        return 4
    return int(part[1]) + 5 if part[0] == "up_blocks" else -1


def hook(network: nn.Module, weights: Weights, kind: str, matrices: Tensor) -> int:
    """Add B(M(A x)) * alpha / r to every target layer; returns how many there are."""
    state, adapter, block = (
        (weights["state_dict_unet"], "default", unet_block)
        if kind == "unet"
        else (weights["state_dict_vae"], "vae_skip", vae_block)
    )
    scale = PEFT_ALPHA / weights[f"rank_{kind}"]
    count = 0
    for name, layer in network.named_modules():
        targeted = (
            any(name == target or name.endswith(f".{target}") for target in UNET_TARGETS)
            if kind == "unet"
            else re.fullmatch(VAE_TARGETS, name)
        )
        if not targeted:
            continue
        a, b = (state[f"{name}.lora_{half}.{adapter}.weight"] for half in "AB")
        de_mod = matrices[:, block(name)]

        def with_lora(
            layer: nn.Module,
            inputs: tuple[Tensor, ...],
            output: Tensor,
            a: Tensor = a,
            b: Tensor = b,
            de_mod: Tensor = de_mod,
        ) -> Tensor:
            x = inputs[0]
            if isinstance(layer, nn.Conv2d):
                mid = F.conv2d(x, a, None, layer.stride, layer.padding)
                mid = torch.einsum("...khw,...kr->...rhw", mid, de_mod)
                return output + F.conv2d(mid, b) * scale
            mid = torch.einsum("...lk,...kr->...lr", F.linear(x, a), de_mod)
            return output + F.linear(mid, b) * scale

        layer.register_forward_hook(with_lora)
        count += 1
    return count


@torch.no_grad()
def restored(
    unet: UNet2DConditionModel,
    vae: AutoencoderKL,
    weights: Weights,
    de_net: dict[str, Tensor],
    prompts: Tensor,
    rgb: Tensor,
    scale: int,
    noise: Tensor,
) -> Tensor:
    """The whole way, without tiles and without the color fix; the networks are changed."""
    unet.conv_in.load_state_dict(
        {name: weights["state_dict_unet"][f"conv_in.{name}"] for name in ("weight", "bias")}
    )
    height, width = rgb.shape[2:]
    enlarged = F.interpolate(rgb, (height * scale, width * scale), mode="bilinear")
    x = torch.clamp(enlarged * 2 - 1.0, -1.0, 1.0)
    pad_h = math.ceil(height * scale / 64) * 64 - height * scale
    pad_w = math.ceil(width * scale / 64) * 64 - width * scale
    x = F.pad(x, (0, pad_w, 0, pad_h), mode="reflect")
    degrees = degradation(de_net, rgb)
    hook(unet, weights, "unet", modulations(weights, "unet", degrees, weights["rank_unet"]))
    hook(vae, weights, "vae", modulations(weights, "vae", degrees, weights["rank_vae"]))
    posterior = vae.encode(x).latent_dist
    latent = (posterior.mean + posterior.std * noise) * vae.config.scaling_factor
    timestep = torch.tensor([999])
    positive, negative = (
        unet(latent, timestep, encoder_hidden_states=prompt[None]).sample for prompt in prompts
    )
    prediction = negative + 1.07 * (positive - negative)
    scheduler = DDPMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        timestep_spacing="trailing",
    )
    scheduler.set_timesteps(1)
    clean = scheduler.step(prediction, timestep, latent).prev_sample
    image = vae.decode(clean / vae.config.scaling_factor).sample.clamp(-1, 1)
    return image[:, :, : height * scale, : width * scale] * 0.5 + 0.5
