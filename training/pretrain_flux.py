"""Nano's stand-in for FLUX.1-dev and FLUX.1-Redux-dev: both from scratch, on visual prompts alone.

FLUX learns to draw a photo from the visual prompt of that very photo; Redux learns with it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, FluxTransformer2DModel
from diffusers.pipelines.flux.modeling_flux import ReduxImageEncoder
from torch import Tensor, nn

from colorflux_core.color import unit_range
from colorflux_core.components import FLUX_SCHEDULE
from colorflux_core.control import control_from_transformer
from colorflux_core.flow import flow_matching_loss, interpolate, velocity
from colorflux_core.velocity import predict_velocity
from colorflux_core.visual_prompt import after_text_tokens, prompt_from_tokens

from .config import setting
from .data import Rows
from .loop import Batch
from .parts import Encoder, PartsConfig, images, part, pipeline, with_noise
from .sheet import save_sheet


@dataclass
class FluxConfig(PartsConfig):
    heads: int = setting(2, "attention heads, of FLUX's 128 channels each")
    double_blocks: int = setting(1, "double-stream MM-DiT blocks")
    single_blocks: int = setting(4, "single-stream MM-DiT blocks")
    prompt_width: int = setting(256, "width of the visual prompt's tokens")


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

    def __init__(self, config: FluxConfig, samples: Tensor) -> None:
        torch.manual_seed(config.seed)
        tower = part(config, "image_encoder")
        self.config, self.samples = config, samples
        self.transformer = build_flux(config)
        self.redux = ReduxImageEncoder(tower.config.hidden_size, config.prompt_width)
        self.scheduler = FlowMatchEulerDiscreteScheduler(**FLUX_SCHEDULE)
        self.parts = {"transformer": self.transformer, "image_embedder": self.redux}
        self.trainable: nn.Module = nn.ModuleDict(self.parts)

    def draw(self, batch: Batch, generator: torch.Generator) -> Batch:
        return with_noise(batch, "latents", generator, self.config)

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
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
        return flow_matching_loss(predicted, velocity(x_0, noise)), {}

    def sample(self, path: Path) -> None:
        """Photos above what their visual prompts alone draw: alike, not the same."""
        drawn = pipeline(
            self.config,
            self.scheduler,
            **self.parts,
            controlnet=control_from_transformer(self.transformer, 1, 1),
        )(
            unit_range(self.samples),
            reference=unit_range(self.samples),
            controlnet_conditioning_scale=0.0,
            text_tokens=self.config.text_tokens,
            generator=torch.Generator().manual_seed(0),
        ).images
        save_sheet([unit_range(self.samples), drawn], path)

    def save(self, folder: Path) -> None:
        for name, model in self.parts.items():
            model.save_pretrained(folder / name)
        self.scheduler.save_pretrained(folder / "scheduler")


def flux_stage(config: FluxConfig) -> tuple[FluxStage, Rows]:
    pictures, encoder = images(config), Encoder(config)
    rows = Rows({"latents": encoder.latents(pictures), "tokens": encoder.tokens(pictures)})
    return FluxStage(config, images(config, "validation", 1)[:8]), rows
