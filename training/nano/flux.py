"""Pretrain nano's stand-in for FLUX.1-dev and FLUX.1-Redux-dev, both from scratch.

  python -m training.pretrain flux --recipe training/recipes/nano.toml --photos PHOTOS

FLUX learns to draw a photo from the visual prompt of that same photo; Redux is trained with it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, FluxTransformer2DModel
from diffusers.pipelines.flux.modeling_flux import ReduxImageEncoder
from torch import nn

from colorflux_core.bundles.components import FLUX_SCHEDULE
from colorflux_core.model.control import control_from_transformer
from colorflux_core.model.visual_prompt import prompt_from_tokens
from colorflux_core.options import setting
from colorflux_core.photos.color import unit_range

from ..config import MODEL
from ..data.pictures import Picture, pixels, sample_pictures, training_pictures
from ..data.rows import Batch, Rows
from ..encode.encoding import cached_latents, cached_tokens
from ..models.artifact import save_model
from ..models.flow_stage import FlowStage
from ..models.parallel import devices
from ..models.parts import Parts, PartsConfig, pipeline
from ..stage import Columns, Loss, Sheet, Training


@dataclass
class FluxConfig(PartsConfig):
    heads: int = setting(2, "attention heads of 128 channels", low=1, group=MODEL)
    double_blocks: int = setting(1, "double-stream MM-DiT blocks", low=1, group=MODEL)
    single_blocks: int = setting(4, "single-stream MM-DiT blocks", low=1, group=MODEL)
    prompt_width: int = setting(256, "width of the visual prompt's tokens", low=1, group=MODEL)


def build_flux(config: FluxConfig) -> FluxTransformer2DModel:
    """A randomly initialized FLUX of the configured size."""
    return FluxTransformer2DModel(
        num_layers=config.double_blocks,
        num_single_layers=config.single_blocks,
        num_attention_heads=config.heads,
        joint_attention_dim=config.prompt_width,
        pooled_projection_dim=64,
        guidance_embeds=True,
    )


class FluxStage(FlowStage):
    """L_FM (Eq. 2) for the transformer and Redux together, without a ControlNet."""

    name = "flux"
    config: FluxConfig
    columns = Columns(latents=("latents",), tokens=("tokens",))

    def __init__(self, config: FluxConfig, parts: Parts) -> None:
        torch.manual_seed(config.seed)
        tower = Parts(config, weights=False).load("image_encoder")
        super().__init__(config, parts)
        with parts.device:
            self.transformer = build_flux(config)
            self.redux = ReduxImageEncoder(tower.config.hidden_size, config.prompt_width)
        self.scheduler = FlowMatchEulerDiscreteScheduler(**FLUX_SCHEDULE)
        self.models = {"transformer": self.transformer, "image_embedder": self.redux}
        for model in self.models.values():
            parts.trained(model)
        self.trainable: nn.Module = nn.ModuleDict(self.models)

    def loss(self, batch: Batch) -> Loss:
        error = self.flow_error(
            batch, prompt_from_tokens(self.redux, batch["tokens"]), self.transformer
        )
        return error.mean(), {"flow_loss": error}

    def sample(self, samples: list[Picture]) -> Sheet:
        """The photos, and below them pictures generated from their visual prompts alone."""
        photos = unit_range(pixels(samples))
        generate = pipeline(
            self.parts,
            self.scheduler,
            **self.models,
            controlnet=control_from_transformer(build_flux(self.config), 1, 1),
        )
        generated = generate(
            photos,
            reference=photos,
            controlnet_conditioning_scale=0.0,
            text_tokens=self.config.text_tokens,
            generator=torch.Generator().manual_seed(0),
        ).images
        return Sheet([photos], [generated])

    def save(self, folder: Path) -> None:
        for name, model in self.models.items():
            save_model(name, model, folder)
        if devices().is_main_process:
            self.scheduler.save_pretrained(folder / "scheduler")


def flux_training(config: FluxConfig) -> Training:
    """The stage, its rows and samples."""
    chosen, parts = training_pictures(config, "flux"), Parts(config)
    rows = Rows(
        [picture.photo.file for picture in chosen],
        {"latents": cached_latents(parts, chosen), "tokens": cached_tokens(parts, chosen)},
    )
    return Training(FluxStage(config, parts), rows, sample_pictures(config, "flux"))
