"""Stage 1, structure consistency training (paper 4.1.1, 7.1): ``python -m training.structure``.

The gray ControlNet alone learns, with L_FM. It is told the colors by the visual prompt of the
*color* photo, so that structure is all that is left for it to learn. The defaults are the paper's.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from colorflux_core.color import unit_range
from colorflux_core.components import load_model
from colorflux_core.control import control_from_transformer
from colorflux_core.flow import flow_matching_loss, interpolate, velocity
from colorflux_core.velocity import control_residuals, predict_velocity
from colorflux_core.visual_prompt import after_text_tokens, prompt_from_tokens

from .config import parse, run, setting
from .data import Rows
from .loop import Batch, train
from .parts import Encoder, PartsConfig, gray, images, part, pipeline, with_noise
from .sheet import save_sheet


@dataclass
class StructureConfig(PartsConfig):
    epochs: float = setting(5.0, "passes over the views, where --steps is 0")
    double_blocks: int = setting(4, "the transformer's first double blocks to copy")
    single_blocks: int = setting(10, "the transformer's first single blocks to copy")
    initial_controlnet: Path | None = setting(
        None, "a ControlNet to go on from, instead of copied blocks"
    )


class StructureStage:
    def __init__(self, config: StructureConfig, samples: Tensor) -> None:
        self.config, self.samples = config, samples
        self.transformer = part(config, "transformer")
        self.redux = part(config, "image_embedder")
        if config.initial_controlnet is None:
            self.controlnet = control_from_transformer(
                self.transformer, config.double_blocks, config.single_blocks
            )
        else:
            self.controlnet = load_model("controlnet", config.initial_controlnet, torch.float32)
        self.trainable: nn.Module = self.controlnet.requires_grad_(True)

    def draw(self, batch: Batch, generator: torch.Generator) -> Batch:
        return with_noise(batch, "latents", generator, self.config)

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        x_0, noise, t = batch["latents"], batch["noise"], batch["t"]
        x_t = interpolate(x_0, noise, t)
        with torch.no_grad():
            c_v = prompt_from_tokens(self.redux, batch["color_tokens"])
        prompt = after_text_tokens(c_v, self.config.text_tokens)
        given = (prompt, self.config.latent_size, self.config.guidance)
        residuals = control_residuals(self.trainable, x_t, t, batch["gray_latents"], *given)
        predicted = predict_velocity(self.transformer, x_t, t, *given, residuals=residuals)
        return flow_matching_loss(predicted, velocity(x_0, noise)), {}

    def sample(self, path: Path) -> None:
        """Photos; drawn with the color photo's prompt; drawn with the gray photo's prompt."""
        photos = unit_range(self.samples)
        draw = pipeline(self.config, transformer=self.transformer, controlnet=self.trainable)
        sheets = [
            draw(
                photos,
                reference=reference,
                text_tokens=self.config.text_tokens,
                generator=torch.Generator().manual_seed(0),
            ).images
            for reference in (photos, None)
        ]
        save_sheet([photos, *sheets], path)

    def save(self, folder: Path) -> None:
        self.controlnet.save_pretrained(folder / "controlnet")


def structure_stage(config: StructureConfig) -> tuple[StructureStage, Rows]:
    pictures, encoder = images(config), Encoder(config)
    rows = Rows(
        {
            "latents": encoder.latents(pictures),
            "gray_latents": encoder.latents(gray(pictures)),
            "color_tokens": encoder.tokens(pictures),
        }
    )
    return StructureStage(config, images(config, "validation", 1)[:8]), rows


def main(argv: list[str]) -> None:
    config = parse(StructureConfig, argv, "training.structure")
    train(*structure_stage(config), config)


if __name__ == "__main__":
    run(main)
