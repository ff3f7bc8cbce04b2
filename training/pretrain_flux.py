"""Nano's stand-in for FLUX.1-dev and FLUX.1-Redux-dev: both from scratch, on visual prompts alone.

FLUX learns to draw a photo from the visual prompt of that very photo; Redux learns with it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, FluxTransformer2DModel
from diffusers.pipelines.flux.modeling_flux import ReduxImageEncoder
from torch import nn

from colorflux_core.color import unit_range
from colorflux_core.components import FLUX_SCHEDULE
from colorflux_core.control import control_from_transformer
from colorflux_core.flow import interpolate, squared_error, velocity
from colorflux_core.velocity import predict_velocity
from colorflux_core.visual_prompt import after_text_tokens, prompt_from_tokens

from .config import setting
from .data import Batch, Picture, Rows, pixels
from .fresh import Encoding, FreshEncoder, encoded_columns
from .loop import Loss, Training
from .parallel import devices
from .parts import (
    Parts,
    PartsConfig,
    blank_batch,
    pictures,
    pipeline,
    sample_pictures,
    save_model,
    with_noise,
)
from .sheet import Sheet

COLUMNS: dict[str, Encoding] = {
    "latents": ("latents", "color"),
    "tokens": ("tokens", "color"),
}


@dataclass
class FluxConfig(PartsConfig):
    heads: int = setting(2, "attention heads, of FLUX's 128 channels each", low=1)
    double_blocks: int = setting(1, "double-stream MM-DiT blocks", low=1)
    single_blocks: int = setting(4, "single-stream MM-DiT blocks", low=1)
    prompt_width: int = setting(256, "width of the visual prompt's tokens", low=1)


def build_flux(config: FluxConfig) -> FluxTransformer2DModel:
    return FluxTransformer2DModel(
        num_layers=config.double_blocks,
        num_single_layers=config.single_blocks,
        num_attention_heads=config.heads,
        joint_attention_dim=config.prompt_width,
        pooled_projection_dim=64,
        guidance_embeds=True,
    )


class FluxStage:
    """L_FM (Eq. 2) for the transformer and Redux together."""

    def __init__(self, config: FluxConfig, parts: Parts) -> None:
        torch.manual_seed(config.seed)
        tower = Parts(config, weights=False).load("image_encoder")
        self.config, self.parts = config, parts
        with parts.device:
            self.transformer = build_flux(config)
            self.redux = ReduxImageEncoder(tower.config.hidden_size, config.prompt_width)
        self.scheduler = FlowMatchEulerDiscreteScheduler(**FLUX_SCHEDULE)
        self.models = {"transformer": self.transformer, "image_embedder": self.redux}
        for model in self.models.values():
            parts.learning(model)
        self.trainable: nn.Module = nn.ModuleDict(self.models)
        self.fresh = FreshEncoder(parts, COLUMNS) if config.fresh_views else None

    def draw(self, batch: Batch, generators: list[torch.Generator]) -> Batch:
        if self.fresh:
            batch = self.fresh(batch)
        return with_noise(batch, "latents", generators, self.config)

    def loss(self, batch: Batch) -> Loss:
        x_0, noise, t = batch["latents"], batch["noise"], batch["t"]
        c_v = prompt_from_tokens(self.redux, batch["tokens"])
        predicted = predict_velocity(
            self.transformer,
            interpolate(x_0, noise, t),
            t,
            after_text_tokens(c_v, self.config.text_tokens),
            self.config.latent_size,
            self.config.guidance,
        )
        error = squared_error(predicted, velocity(x_0, noise))
        return error.mean(), {"flow_loss": error}

    def blank(self, rows: int) -> Batch:
        return blank_batch(self.parts, rows, latents=("latents",), tokens=("tokens",))

    def sample(self, samples: list[Picture]) -> Sheet:
        """Photos above what their visual prompts alone draw: alike, not the same."""
        photos = unit_range(pixels(samples))
        draw = pipeline(
            self.parts,
            self.scheduler,
            **self.models,
            controlnet=control_from_transformer(build_flux(self.config), 1, 1),
        )
        drawn = draw(
            photos,
            reference=photos,
            controlnet_conditioning_scale=0.0,
            text_tokens=self.config.text_tokens,
            generator=torch.Generator().manual_seed(0),
        ).images
        return Sheet([photos], [drawn])

    def save(self, folder: Path) -> None:
        for name, model in self.models.items():
            save_model(name, model, folder)
        if devices().is_main_process:
            self.scheduler.save_pretrained(folder / "scheduler")


def flux_training(config: FluxConfig) -> Training:
    chosen, parts = pictures(config, "flux"), Parts(config)
    rows = Rows(
        [picture.photo.file for picture in chosen],
        encoded_columns(parts, chosen, COLUMNS),
    )
    return Training(FluxStage(config, parts), rows, sample_pictures(config, "flux"))
