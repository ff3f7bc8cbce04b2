"""Stage 1, structure consistency training (paper 4.1.1, 7.1).

  python -m training.structure --recipe training/recipes/80gb.toml

Only the gray ControlNet is trained, with L_FM. The visual prompt comes from the *color* photo and
already contains the colors, so that only structure is left to learn. The defaults are the paper's.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from colorflux_core.model.control import control_from_transformer
from colorflux_core.model.visual_prompt import prompt_from_tokens
from colorflux_core.options import inherit, setting
from colorflux_core.photos.color import unit_range

from .config import MODEL, parse
from .data.pictures import (
    Picture,
    gray_pictures,
    pixels,
    sample_pictures,
    training_pictures,
)
from .data.rows import Batch, Rows
from .encode.encoding import cached_latents, cached_tokens
from .launch import plan_or_train, run_command
from .models.artifact import save_model
from .models.flow_stage import FlowStage
from .models.parts import Parts, PartsConfig
from .stage import Columns, Loss, Sheet, Training


@dataclass
class StructureConfig(PartsConfig):
    epochs: float = inherit(PartsConfig, "epochs", 5.0)
    double_blocks: int = setting(
        4, "double blocks of the ControlNet, copied from the transformer", low=0, group=MODEL
    )
    single_blocks: int = setting(
        10, "single blocks of the ControlNet, copied from the transformer", low=0, group=MODEL
    )
    initial_controlnet: Path | None = setting(
        None, "ControlNet to start from, instead of copied blocks", group=MODEL
    )


class StructureStage(FlowStage):
    """Trains the gray ControlNet with L_FM (Eq. 2)."""

    name = "structure"
    columns = Columns(latents=("latents", "gray_latents"), tokens=("color_tokens",))

    def __init__(self, config: StructureConfig, parts: Parts) -> None:
        super().__init__(config, parts)
        transformer = parts.load("transformer")
        if config.initial_controlnet is None:
            controlnet = control_from_transformer(
                transformer, config.double_blocks, config.single_blocks
            )
        else:
            controlnet = parts.load("controlnet", config.initial_controlnet, torch.float32)
        self.trainable = parts.trained(controlnet)
        self.transformer = parts.freeze(transformer)
        self.redux = parts.frozen("image_embedder")

    def loss(self, batch: Batch) -> Loss:
        """L_FM (Eq. 2), with the visual prompt of the color photo."""
        with torch.no_grad():
            c_v = prompt_from_tokens(self.redux, batch["color_tokens"])
        error = self.flow_error(batch, c_v, self.transformer, self.trainable)
        return error.mean(), {"flow_loss": error}

    def sample(self, samples: list[Picture]) -> Sheet:
        """The photos, and below them colorized with the color and with the gray photo's prompt."""
        photos = unit_range(pixels(samples))
        colorize = self.colorizer(transformer=self.transformer, controlnet=self.trainable)
        return Sheet([photos], [colorize(photos, reference=photos), colorize(photos)])

    def save(self, folder: Path) -> None:
        save_model("controlnet", self.trainable, folder)


def structure_training(config: StructureConfig) -> Training:
    """The stage, its rows and samples."""
    parts = Parts(config)
    chosen = training_pictures(config, "structure")
    samples = sample_pictures(config, "structure")
    rows = Rows(
        [picture.photo.file for picture in chosen],
        {
            "latents": cached_latents(parts, chosen),
            "gray_latents": cached_latents(parts, gray_pictures(chosen)),
            "color_tokens": cached_tokens(parts, chosen),
        },
    )
    return Training(StructureStage(config, parts), rows, samples)


def main(argv: list[str]) -> None:
    plan_or_train(
        parse(StructureConfig, argv, "training.structure"), StructureStage, structure_training
    )


if __name__ == "__main__":
    run_command(main)
