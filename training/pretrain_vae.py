"""Nano's autoencoder: 16 latent channels at 1/8 size, as FLUX's. The encoder is linear and comes in
closed form; the decoder is trained, to put back what 16 numbers a patch leave open.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from torch.nn import functional as F

from colorflux_core.color import rgb_to_ycbcr, unit_range
from colorflux_core.components import load_model
from colorflux_core.errors import ColorFluxError

from .config import LoopConfig, setting
from .data import Batch, Picture, Rows, pixels
from .encoding import stored_pixels
from .linear_vae import PATCH, build_vae
from .loop import Loss, Training
from .order import Place
from .parallel import devices
from .parts import pictures, sample_pictures, save_model
from .sheet import Sheet

ANALYZED = 512
"""Photos that the closed form is made from, at most."""


@dataclass
class VaeConfig(LoopConfig):
    crop: int = setting(
        64, "side in pixels of the random crops that the decoder trains on", low=PATCH
    )
    chroma_weight: float = setting(2.0, "weight of the chroma error beside the RGB error", low=0)
    whitening: float = setting(
        1.0,
        "1 gives all latents unit variance, 0 leaves fine detail as small as it is in photos",
        low=0,
        high=1,
    )
    chroma_scale: float = setting(
        1.0, "standard deviation of the first chroma latent, beside luma's 1", low=0.1
    )
    initial_vae: Path | None = setting(
        None, "a VAE whose decoder to train on, instead of a new one in closed form"
    )
    latent_noise: float = setting(
        0.05, "noise on the latents, for which the flow's will not be exact", low=0
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.crop % PATCH or self.crop > self.canvas:
            raise ColorFluxError(
                f"--crop {self.crop} must be a multiple of {PATCH}, at most --canvas {self.canvas}"
            )


class VaeStage:
    """Mean absolute error of the reconstruction, in RGB and once more in chroma."""

    def __init__(self, config: VaeConfig, vae: AutoencoderKL) -> None:
        self.config = config
        self.trainable = vae.to(devices().device)
        vae.encoder.requires_grad_(False)

    def draw(self, batch: Batch, generators: list[torch.Generator]) -> Batch:
        images, crop = batch["images"], self.config.crop
        crops = []
        for image, generator in zip(images, generators, strict=True):
            limits = image.shape[-1] - crop + 1
            y, x = torch.randint(0, limits, (2,), generator=generator).tolist()
            crops.append(image[:, y : y + crop, x : x + crop])
        shape = (16, crop // PATCH, crop // PATCH)
        noise = torch.stack([torch.randn(shape, generator=g) for g in generators])
        return {"rgb": unit_range(torch.stack(crops)), "noise": noise.to(images.device)}

    def loss(self, batch: Batch) -> Loss:
        rgb = batch["rgb"]
        with torch.no_grad():
            latents = self.trainable.encode(rgb * 2 - 1).latent_dist.mode()
        latents = latents + self.config.latent_noise * batch["noise"]
        decoded = self.trainable.decode(latents).sample.float() / 2 + 0.5
        error = F.l1_loss(decoded, rgb)
        chroma = F.l1_loss(rgb_to_ycbcr(decoded)[:, 1:], rgb_to_ycbcr(rgb)[:, 1:])
        psnr = -10 * F.mse_loss(decoded, rgb).log10()
        return error + self.config.chroma_weight * chroma, {"psnr": psnr, "chroma_error": chroma}

    def sample(self, samples: list[Picture]) -> Sheet:
        """Photos above their reconstructions."""
        rgb = unit_range(pixels(samples)).to(self.trainable.device)
        latents = self.trainable.encode(rgb * 2 - 1).latent_dist.mode()
        return Sheet([rgb], [self.trainable.decode(latents).sample / 2 + 0.5])

    def save(self, folder: Path) -> None:
        save_model("vae", self.trainable, folder)


def vae_training(config: VaeConfig) -> Training:
    chosen = pictures(config, "vae")
    images = stored_pixels(config, chosen)
    torch.manual_seed(config.seed)
    if config.initial_vae is None:
        every = config.views * math.ceil(len(chosen) / config.views / ANALYZED)
        whole = torch.stack([images(Place(row, 0)) for row in range(0, len(chosen), every)])
        vae = build_vae(unit_range(whole), config.whitening, config.chroma_scale)
    else:
        vae = load_model("vae", config.initial_vae, torch.float32)
    stage = VaeStage(config, vae)
    rows = Rows([picture.photo.file for picture in chosen], {"images": images})
    return Training(stage, rows, sample_pictures(config, "vae"))
