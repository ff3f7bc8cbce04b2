"""Stage 1, structure consistency training (paper 4.1.1, 7.1): ``python -m training.structure``.

The gray ControlNet alone learns, with L_FM. It is told the colors by the visual prompt of the
*color* photo, so that structure is all that is left for it to learn. The defaults are the paper's.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from colorflux_core.color import unit_range
from colorflux_core.control import control_from_transformer
from colorflux_core.flow import interpolate, squared_error, velocity
from colorflux_core.velocity import control_residuals, predict_velocity
from colorflux_core.visual_prompt import after_text_tokens, prompt_from_tokens

from .config import parse, run, setting
from .data import Batch, Picture, Rows, pixels
from .fresh import Encoding, FreshEncoder, encoded_columns
from .loop import Loss, Training, start
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
    "gray_latents": ("latents", "gray"),
    "color_tokens": ("tokens", "color"),
}


@dataclass
class StructureConfig(PartsConfig):
    epochs: float = setting(
        5.0, "passes over the views, where --steps is 0", low=0, may_change=True
    )
    double_blocks: int = setting(4, "the transformer's first double blocks to copy", low=0)
    single_blocks: int = setting(10, "the transformer's first single blocks to copy", low=0)
    initial_controlnet: Path | None = setting(
        None, "a ControlNet to go on from, instead of copied blocks"
    )


class StructureStage:
    def __init__(self, config: StructureConfig, parts: Parts) -> None:
        self.config, self.parts = config, parts
        transformer = parts.load("transformer")
        if config.initial_controlnet is None:
            controlnet = control_from_transformer(
                transformer, config.double_blocks, config.single_blocks
            )
        else:
            controlnet = parts.load("controlnet", config.initial_controlnet, torch.float32)
        self.trainable = parts.learning(controlnet)
        self.transformer = parts.freeze(transformer)
        self.redux = parts.frozen("image_embedder")
        self.fresh = FreshEncoder(parts, COLUMNS) if config.fresh_views else None

    def draw(self, batch: Batch, generators: list[torch.Generator]) -> Batch:
        if self.fresh:
            batch = self.fresh(batch)
        return with_noise(batch, "latents", generators, self.config)

    def loss(self, batch: Batch) -> Loss:
        x_0, noise, t = batch["latents"], batch["noise"], batch["t"]
        x_t = interpolate(x_0, noise, t)
        with torch.no_grad():
            c_v = prompt_from_tokens(self.redux, batch["color_tokens"])
        prompt = after_text_tokens(c_v, self.config.text_tokens)
        given = (prompt, self.config.latent_size, self.config.guidance)
        residuals = control_residuals(self.trainable, x_t, t, batch["gray_latents"], *given)
        predicted = predict_velocity(self.transformer, x_t, t, *given, residuals=residuals)
        error = squared_error(predicted, velocity(x_0, noise))
        return error.mean(), {"flow_loss": error}

    def blank(self, rows: int) -> Batch:
        return blank_batch(
            self.parts, rows, latents=("latents", "gray_latents"), tokens=("color_tokens",)
        )

    def sample(self, samples: list[Picture]) -> Sheet:
        """Photos; drawn with the color photo's prompt; drawn with the gray photo's prompt."""
        photos = unit_range(pixels(samples))
        draw = pipeline(self.parts, transformer=self.transformer, controlnet=self.trainable)
        drawn = [
            draw(
                photos,
                reference=reference,
                text_tokens=self.config.text_tokens,
                generator=torch.Generator().manual_seed(0),
            ).images
            for reference in (photos, None)
        ]
        return Sheet([photos], drawn)

    def save(self, folder: Path) -> None:
        save_model("controlnet", self.trainable, folder)


def structure_training(config: StructureConfig) -> Training:
    chosen, parts = pictures(config, "structure"), Parts(config)
    rows = Rows(
        [picture.photo.file for picture in chosen],
        encoded_columns(parts, chosen, COLUMNS),
    )
    samples = sample_pictures(config, "structure")
    return Training(StructureStage(config, parts), rows, samples)


def main(argv: list[str]) -> None:
    start(parse(StructureConfig, argv, "training.structure"), StructureStage, structure_training)


if __name__ == "__main__":
    run(main)
