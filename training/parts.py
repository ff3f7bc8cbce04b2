"""The trained parts that a stage starts from, and the tensors that it encodes its photos into."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate import PartialState
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from tqdm import tqdm

from colorflux_core.color import grayscale, unit_range
from colorflux_core.components import (
    SiglipImageProcessor,
    load_feature_extractor,
    load_model,
    load_scheduler,
)
from colorflux_core.errors import ColorFluxError
from colorflux_core.flow import sample_timesteps
from colorflux_core.latents import encode, pack
from colorflux_core.pipeline import ColorFluxPipeline
from colorflux_core.visual_prompt import image_tokens

from .config import LoopConfig, setting
from .data import read_manifest, to_uint8, views

ENCODE_BATCH = 16


@dataclass
class PartsConfig(LoopConfig):
    base: Path = setting(Path("base"), "diffusers pipeline folder that the parts come from")
    controlnet: Path | None = setting(None, "the gray ControlNet, where it is not in --base")
    redux: Path | None = setting(None, "Redux, where it is not the image_embedder in --base")
    cache: Path = setting(Path("runs/cache"), "folder for latents and image tokens")
    guidance: float = setting(3.5, "what a guidance-distilled FLUX is told")
    text_tokens: int = setting(512, "zero tokens before the visual prompt")
    timestep_density: Literal["logit_normal", "uniform"] = setting(
        "logit_normal", "how timesteps are drawn (the paper does not say)"
    )

    @property
    def latent_size(self) -> tuple[int, int]:
        return self.canvas // 8, self.canvas // 8


def part(config: PartsConfig, name: str) -> Any:
    """A frozen model of the pipeline, in float32.

    Raises ColorFluxError, which names the flag, when it is missing or cannot be used.
    """
    flag, path = "base", config.base
    if name == "controlnet" and config.controlnet is not None:
        flag, path = "controlnet", config.controlnet
    if name == "image_embedder" and config.redux is not None:
        flag, path = "redux", config.redux
    try:
        model = load_model(name, path, torch.float32)
    except ColorFluxError as error:
        raise ColorFluxError(f"--{flag} {path}: {error}") from error
    return model.requires_grad_(False).to(PartialState().device)


def feature_extractor(config: PartsConfig) -> SiglipImageProcessor:
    return load_feature_extractor(config.base)


def pipeline(
    config: PartsConfig,
    scheduler: FlowMatchEulerDiscreteScheduler | None = None,
    **trained: nn.Module,
) -> ColorFluxPipeline:
    """The pipeline of the parts, with ``trained`` ones in their places."""
    names = ("transformer", "vae", "controlnet", "image_encoder", "image_embedder")
    parts = {name: trained.get(name) or part(config, name) for name in names}
    whole = ColorFluxPipeline(
        **parts,
        feature_extractor=feature_extractor(config),
        scheduler=scheduler or load_scheduler(config.base),
    )
    whole.set_progress_bar_config(disable=True)
    return whole.to(PartialState().device)


def images(config: LoopConfig, split: str = "train", per_photo: int = 0) -> Tensor:
    """Views of a split's photos, uint8 (N, 3, canvas, canvas)."""
    photos = read_manifest(config.manifest, config.photos, split)
    per_photo = per_photo or config.views
    return torch.stack([to_uint8(v) for v in views(photos, config.canvas, per_photo, config.seed)])


def gray(pictures: Tensor) -> Tensor:
    """The grayscale of uint8 pictures, as uint8: what an 8-bit scan would hold."""
    chunks = (grayscale(unit_range(chunk)) for chunk in pictures.split(ENCODE_BATCH))
    return torch.cat([(chunk * 255).round().byte() for chunk in chunks])


def with_noise(
    batch: dict[str, Tensor], photo: str, generator: torch.Generator, config: PartsConfig
) -> dict[str, Tensor]:
    """The batch with the noise eps and the timesteps t of Eq. 1, for the column ``photo``."""
    noise = torch.randn(batch[photo].shape, generator=generator)
    t = sample_timesteps(len(noise), generator, config.timestep_density)
    return {**batch, "noise": noise, "t": t}


class Encoder:
    """Pictures (N, 3, H, W) uint8 -> what never changes in training, kept on disk by content."""

    def __init__(self, config: PartsConfig) -> None:
        self.config = config

    def latents(self, pictures: Tensor) -> Tensor:
        """Packed latents (N, L, 64), float32."""
        vae: AutoencoderKL = part(self.config, "vae").to(memory_format=torch.channels_last)
        return self._cached(
            "latents", vae.encoder, pictures, lambda rgb: pack(encode(vae, rgb)).float()
        )

    def tokens(self, pictures: Tensor) -> Tensor:
        """The vision tower's image tokens (N, T, D), bfloat16."""
        tower = part(self.config, "image_encoder")
        processor = feature_extractor(self.config)
        return self._cached(
            "tokens", tower, pictures, lambda rgb: image_tokens(tower, processor, rgb).bfloat16()
        )

    @torch.no_grad()
    def _cached(
        self, name: str, model: nn.Module, pictures: Tensor, run: Callable[[Tensor], Tensor]
    ) -> Tensor:
        file = (
            self.config.cache / f"{name}-{fingerprint(pictures, *model.parameters())}.safetensors"
        )
        if file.exists():
            return load_file(file)[name]
        encoded, device = [], PartialState().device
        with torch.autocast(device.type, torch.bfloat16, enabled=self.config.precision == "bf16"):
            for chunk in tqdm(pictures.split(ENCODE_BATCH), desc=f"encoding {name}", unit="batch"):
                encoded.append(run(unit_range(chunk).to(device)).cpu())
        file.parent.mkdir(parents=True, exist_ok=True)
        unfinished = file.with_suffix(".part")
        save_file({name: torch.cat(encoded)}, unfinished)
        unfinished.replace(file)
        return torch.cat(encoded)


def fingerprint(*tensors: Tensor) -> str:
    digest = hashlib.blake2b(digest_size=12)
    for tensor in tensors:
        digest.update(tensor.detach().cpu().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
