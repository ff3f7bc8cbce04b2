"""Pretrain nano's autoencoder: 16 latent channels at 1/8 size, as FLUX's.

  python -m training.pretrain vae --recipe training/recipes/nano.toml --photos PHOTOS

The encoder is linear and computed in closed form; the decoder is trained.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from torch.nn import functional as F

from colorflux_core.errors import ColorFluxError
from colorflux_core.options import setting
from colorflux_core.photos.color import rgb_to_ycbcr, unit_range

from ..config import DATA, LOSS, LoopConfig
from ..data.order import SampleIndex
from ..data.pictures import Picture, pixels, sample_pictures, training_pictures
from ..data.rows import Batch, Rows
from ..encode.encoding import cached_pixels
from ..models.artifact import save_model
from ..models.parallel import devices
from ..stage import Loss, Sheet, Training
from .linear_vae import PATCH, build_vae


@dataclass
class VaeConfig(LoopConfig):
    crop: int = setting(
        64, "side in pixels of the random crops that the decoder trains on", low=PATCH, group=DATA
    )
    chroma_weight: float = setting(
        2.0, "weight of the chroma error relative to the RGB error", low=0, group=LOSS
    )
    latent_noise: float = setting(
        0.05, "noise added to the latents, because FLUX's are not exact either", low=0, group=LOSS
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.crop % PATCH or self.crop > self.canvas:
            raise ColorFluxError(
                f"--crop {self.crop} must be a multiple of {PATCH}, at most --canvas {self.canvas}"
            )


class VaeStage:
    """Trains the decoder with the reconstruction's mean absolute error in RGB and in chroma."""

    def __init__(self, config: VaeConfig, vae: AutoencoderKL) -> None:
        self.config = config
        self.trainable = vae.to(devices().device)
        vae.encoder.requires_grad_(False)

    def prepare_batch(self, batch: Batch, generators: list[torch.Generator]) -> Batch:
        """Random crops (B, 3, crop, crop) in [0, 1], and noise for their latents."""
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
        """L1 in RGB plus ``chroma_weight`` times L1 in chroma."""
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
        """The photos, and below them their reconstructions."""
        rgb = unit_range(pixels(samples)).to(self.trainable.device)
        latents = self.trainable.encode(rgb * 2 - 1).latent_dist.mode()
        return Sheet([rgb], [self.trainable.decode(latents).sample / 2 + 0.5])

    def save(self, folder: Path) -> None:
        save_model("vae", self.trainable, folder)


def vae_training(config: VaeConfig) -> Training:
    """The stage, its rows and samples."""
    chosen = training_pictures(config, "vae")
    images = cached_pixels(config, chosen)
    full_photos = [images(SampleIndex(row, 0)) for row in range(0, len(chosen), config.views)]
    torch.manual_seed(config.seed)
    stage = VaeStage(config, build_vae(unit_range(torch.stack(full_photos))))
    rows = Rows([picture.photo.file for picture in chosen], {"images": images})
    return Training(stage, rows, sample_pictures(config, "vae"))
