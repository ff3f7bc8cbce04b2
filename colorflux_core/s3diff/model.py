"""S3Diff as one module: SD-Turbo, its modulated LoRA, and DE-Net that modulates it."""

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
"""peft's default, with which S3Diff was trained: the LoRA's scale is ALPHA / rank."""

TIMESTEP = 999
ALPHA_BAR = 0.00466009508818388
"""The signal's share of the variance at that timestep, in Stable Diffusion's schedule."""


class S3Diff(nn.Module):
    """One step from a scan to its restored version (S3Diff 3).

    ``prompts`` are the embeddings (2, 77, width) of the positive and the negative prompt.
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
        """The part of the state that S3Diff adds to SD-Turbo: what its checkpoint holds."""
        own = ("de_net.", "frequencies", "unet.conv_in.", "unet_modulator.", "vae_modulator.")
        return {
            key: tensor
            for key, tensor in self.state_dict().items()
            if ".lora_" in key or key.startswith(own)
        }

    @contextmanager
    def adapted(self, degrees: Tensor) -> Iterator[None]:
        """All LoRA layers modulated for pictures of these degrees of blur and noise, (N, 2).

        Before and after, the networks are SD-Turbo's, without a LoRA.
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
        """Mean and standard deviation of the scaled latents (N, 4, h, w) of ``rgb`` in [0, 1]."""
        pixels = (2 * rgb - 1).to(self.vae.dtype)
        posterior = self.vae.encode(pixels).latent_dist
        factor = self.vae.config.scaling_factor
        return factor * posterior.mean.float(), factor * posterior.std.float()

    def step(self, z: Tensor, guidance: float) -> Tensor:
        """The clean latents, by the one step from t = 999 with classifier-free guidance.

        The step itself is in float32: it is a difference of two numbers some 15 times as large.
        """
        n = len(z)
        prompts = self.prompts.to(self.unet.dtype).repeat_interleave(n, dim=0)
        noise = self.unet(z.repeat(2, 1, 1, 1).to(self.unet.dtype), TIMESTEP, prompts).sample
        positive, negative = noise.float().split(n)
        noise = negative + guidance * (positive - negative)
        return (z - (1 - ALPHA_BAR) ** 0.5 * noise) / ALPHA_BAR**0.5

    def decode(self, z: Tensor) -> Tensor:
        """The picture (N, 3, H, W) in [0, 1] of scaled latents."""
        pixels = self.vae.decode((z / self.vae.config.scaling_factor).to(self.vae.dtype)).sample
        return (0.5 * pixels.float() + 0.5).clamp(0, 1)
