"""Nano's autoencoder: 16 latent channels at 1/8 size, as FLUX's. The encoder is linear and comes in
closed form; the decoder is trained, to put back what 16 numbers a patch leave open.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from torch import Tensor
from torch.nn import functional as F

from colorflux_core.color import rgb_to_ycbcr, unit_range

from .config import LoopConfig, setting
from .data import Rows
from .linear_vae import PATCH, build_vae
from .loop import Batch
from .parts import images
from .sheet import save_sheet


@dataclass
class VaeConfig(LoopConfig):
    crop: int = setting(64, "side in pixels of the random crops that the decoder trains on")
    chroma_weight: float = setting(2.0, "weight of the chroma error beside the RGB error")
    latent_noise: float = setting(
        0.05, "noise on the latents, for which the flow's will not be exact"
    )


class VaeStage:
    """Mean absolute error of the reconstruction, in RGB and once more in chroma."""

    def __init__(self, config: VaeConfig, vae: AutoencoderKL, samples: Tensor) -> None:
        self.config, self.samples = config, samples
        self.trainable = vae
        vae.encoder.requires_grad_(False)

    def draw(self, batch: Batch, generator: torch.Generator) -> Batch:
        pictures, crop = batch["images"], self.config.crop
        count, _, side, _ = pictures.shape
        corners = torch.randint(0, side - crop + 1, (count, 2), generator=generator).tolist()
        crops = torch.stack(
            [
                picture[:, y : y + crop, x : x + crop]
                for picture, (y, x) in zip(pictures, corners, strict=True)
            ]
        )
        noise = torch.randn(count, 16, crop // PATCH, crop // PATCH, generator=generator)
        return {"rgb": unit_range(crops), "noise": noise}

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        rgb = batch["rgb"]
        with torch.no_grad():
            latents = self.trainable.encode(rgb * 2 - 1).latent_dist.mode()
        latents = latents + self.config.latent_noise * batch["noise"]
        decoded = self.trainable.decode(latents).sample.float() / 2 + 0.5
        error = F.l1_loss(decoded, rgb)
        chroma = F.l1_loss(rgb_to_ycbcr(decoded)[:, 1:], rgb_to_ycbcr(rgb)[:, 1:])
        psnr = -10 * F.mse_loss(decoded, rgb).log10()
        return error + self.config.chroma_weight * chroma, {"psnr": psnr, "chroma_error": chroma}

    def sample(self, path: Path) -> None:
        """Photos above their reconstructions."""
        rgb = unit_range(self.samples).to(self.trainable.device)
        latents = self.trainable.encode(rgb * 2 - 1).latent_dist.mode()
        save_sheet([rgb, self.trainable.decode(latents).sample / 2 + 0.5], path)

    def save(self, folder: Path) -> None:
        self.trainable.save_pretrained(folder / "vae")


def vae_stage(config: VaeConfig) -> tuple[VaeStage, Rows]:
    torch.manual_seed(config.seed)
    pictures = images(config)
    vae = build_vae(unit_range(pictures[:: config.views]))
    return VaeStage(config, vae, images(config, "validation", 1)[:8]), Rows({"images": pictures})
