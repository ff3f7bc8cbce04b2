"""S3Diff as one module: SD-Turbo, its modulated LoRA, and DE-Net."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor, nn

from .degradation import DegradationEstimator
from .modulated_lora import (
    UNET_STAGES,
    UNET_TARGETS,
    VAE_STAGES,
    VAE_TARGETS,
    attach,
    modulate,
    unet_stage,
    vae_stage,
)
from .modulation import FREQUENCIES, Modulator, fourier_features

ALPHA = 8
"""LoRA alpha used in S3Diff's training (peft's default): the LoRA scale is ALPHA / rank."""

TIMESTEP = 999
ALPHA_BAR = 0.00466009508818388
"""Cumulative alpha at this timestep of Stable Diffusion's noise schedule."""


class S3Diff(nn.Module):
    """One-step restoration of scans (S3Diff, section 3).

    Args:
        unet: SD-Turbo's UNet, which is modified in place.
        vae: SD-Turbo's VAE, which is modified in place.
        prompts: Text embeddings (2, 77, width) of the positive and the negative prompt.
        rank_unet: Rank of the UNet's LoRA.
        rank_vae: Rank of the VAE encoder's LoRA.
    """

    def __init__(
        self,
        unet: UNet2DConditionModel,
        vae: AutoencoderKL,
        prompts: Tensor,
        rank_unet: int = 32,
        rank_vae: int = 16,
    ) -> None:
        super().__init__()
        attach(unet, UNET_TARGETS, rank_unet, ALPHA / rank_unet)
        attach(vae, VAE_TARGETS, rank_vae, ALPHA / rank_vae)
        self.unet, self.vae = unet, vae
        self.de_net = DegradationEstimator()
        self.unet_modulator = Modulator(UNET_STAGES, rank_unet)
        self.vae_modulator = Modulator(VAE_STAGES, rank_vae)
        self.frequencies: Tensor
        self.prompts: Tensor
        self.register_buffer("frequencies", torch.zeros(FREQUENCIES))
        self.register_buffer("prompts", prompts, persistent=False)

    @property
    def trained(self) -> dict[str, Tensor]:
        """The weights that S3Diff adds to SD-Turbo, which make up its checkpoint."""
        own = ("de_net.", "frequencies", "unet.conv_in.", "unet_modulator.", "vae_modulator.")
        return {
            key: tensor
            for key, tensor in self.state_dict().items()
            if ".lora_" in key or key.startswith(own)
        }

    @contextmanager
    def adapted(self, degrees: Tensor) -> Iterator[None]:
        """Modulate all LoRA layers for N images with these degrees of blur and noise, (N, 2).

        Outside this context, the networks are plain SD-Turbo, without a LoRA.
        """
        fourier = fourier_features(degrees, self.frequencies)
        modulate(self.unet, self.unet_modulator(fourier), unet_stage)
        modulate(self.vae, self.vae_modulator(fourier), vae_stage)
        try:
            yield
        finally:
            modulate(self.unet, None, unet_stage)
            modulate(self.vae, None, vae_stage)

    def encode(self, rgb: Tensor) -> tuple[Tensor, Tensor]:
        """Encode RGB (N, 3, H, W) in [0, 1] to mean and standard deviation of the scaled latents.

        Returns:
            Two tensors (N, 4, H / 8, W / 8) in float32.
        """
        pixels = (2 * rgb - 1).to(self.vae.dtype)
        posterior = self.vae.encode(pixels).latent_dist
        factor = self.vae.config.scaling_factor
        return factor * posterior.mean.float(), factor * posterior.std.float()

    def step(self, z: Tensor, guidance: float) -> Tensor:
        """Take one denoising step from t = 999 with classifier-free guidance.

        The step is computed in float32, because it subtracts two numbers about 15 times as large
        as the result.

        Args:
            z: Noisy latents (N, 4, h, w).
            guidance: Guidance scale; 1 ignores the negative prompt.

        Returns:
            The clean latents (N, 4, h, w) in float32.
        """
        n = len(z)
        prompts = self.prompts.to(self.unet.dtype).repeat_interleave(n, dim=0)
        noise = self.unet(z.repeat(2, 1, 1, 1).to(self.unet.dtype), TIMESTEP, prompts).sample
        positive, negative = noise.float().split(n)
        noise = negative + guidance * (positive - negative)
        return (z - (1 - ALPHA_BAR) ** 0.5 * noise) / ALPHA_BAR**0.5

    def decode(self, z: Tensor) -> Tensor:
        """Decode scaled latents (N, 4, h, w) to RGB (N, 3, 8 h, 8 w) in [0, 1]."""
        pixels = self.vae.decode((z / self.vae.config.scaling_factor).to(self.vae.dtype)).sample
        return (0.5 * pixels.float() + 0.5).clamp(0, 1)
