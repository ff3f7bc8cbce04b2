"""FLUX.1's real classes in two sizes: tiny with random weights, and true width without any."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import AutoencoderKL, FluxTransformer2DModel
from torch import Tensor


def tiny_transformer(num_layers: int = 2, num_single_layers: int = 4) -> FluxTransformer2DModel:
    """One head of FLUX.1's 128 channels; the same random weights on every call."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return FluxTransformer2DModel(
            num_layers=num_layers,
            num_single_layers=num_single_layers,
            num_attention_heads=1,
            joint_attention_dim=32,
            pooled_projection_dim=16,
            guidance_embeds=True,
        )


def flux_dev(num_layers: int = 19, num_single_layers: int = 38) -> FluxTransformer2DModel:
    """FLUX.1-dev's width on the meta device: shapes without memory."""
    with torch.device("meta"):
        return FluxTransformer2DModel(
            num_layers=num_layers, num_single_layers=num_single_layers, guidance_embeds=True
        )


def tiny_vae(scaling_factor: float = 0.3611, shift_factor: float | None = 0.1159) -> AutoencoderKL:
    """FLUX.1's VAE (16 channels at 1/8 size), narrow."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            block_out_channels=(8,) * 4,
            norm_num_groups=4,
            layers_per_block=1,
            latent_channels=16,
            scaling_factor=scaling_factor,
            shift_factor=shift_factor,
        )


def transformer_inputs() -> dict[str, Tensor]:
    """Two images of 2x3 tokens with 5 prompt tokens, at two noise levels."""
    random = torch.Generator().manual_seed(1)
    return {
        "hidden_states": torch.randn(2, 6, 64, generator=random),
        "encoder_hidden_states": torch.randn(2, 5, 32, generator=random),
        "pooled_projections": torch.randn(2, 16, generator=random),
        "timestep": torch.tensor([0.3, 0.7]),
        "guidance": torch.full((2,), 3.5),
        "img_ids": torch.cartesian_prod(torch.zeros(1), torch.arange(2.0), torch.arange(3.0)),
        "txt_ids": torch.zeros(5, 3),
    }


def velocity(transformer: FluxTransformer2DModel, **residuals: Any) -> Tensor:
    """The transformer's output (2, 6, 64) for `transformer_inputs`."""
    return transformer(**transformer_inputs(), **residuals, return_dict=False)[0]
