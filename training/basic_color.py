"""Stage 2, basic color learning (paper 4.1.2, 7.2): ``python -m training.basic_color``.

Redux alone learns to find in the *gray* photo the visual prompt that its color photo has:
L = L_FM + alpha L_distill (Eq. 6). FLUX and the ControlNet are frozen. The defaults are the
paper's.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn
from transformers import SiglipVisionModel

from colorflux_core.color import unit_range
from colorflux_core.control import control_from_transformer
from colorflux_core.errors import ColorFluxError
from colorflux_core.flow import interpolate, squared_error, velocity
from colorflux_core.velocity import control_residuals, predict_velocity
from colorflux_core.visual_prompt import after_text_tokens, prompt_from_tokens

from .config import parse, run, setting
from .data import Batch, Picture, Rows, pixels
from .encoding import statistics
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

FLOAT = torch.float32


@dataclass
class BasicColorConfig(PartsConfig):
    epochs: float = setting(
        2.0, "passes over the views, where --steps is 0", low=0, may_change=True
    )
    loss: Literal["both", "flow", "distill"] = setting(
        "both", "the terms of Eq. 6 (Table 3); distill loads neither FLUX nor the ControlNet"
    )
    alpha: float = setting(0.1, "weight of L_distill in Eq. 6", low=0)
    train: Literal["redux", "redux+siglip", "redux+controlnet"] = setting(
        "redux",
        "what learns: the paper's 'Redux model' may mean the vision tower too; with the ControlNet,"
        " anew, structure and color are learned jointly (Fig. 5)",
    )
    double_blocks: int = setting(4, "the transformer's first double blocks to copy for it", low=0)
    single_blocks: int = setting(10, "the transformer's first single blocks to copy for it", low=0)
    initial_redux: Path | None = setting(
        None, "Redux to start from, such as a distill run's, where it is not the pretrained one"
    )
    token_dropout: float = setting(
        0.0, "share of the image tokens' channels hidden from Redux", low=0, high=0.99
    )
    min_colorfulness: float = setting(15.0, "photos below this colorfulness are left out", low=0)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.token_dropout and self.train == "redux+siglip":
            raise ColorFluxError("--token_dropout does not go with a vision tower that learns")
        if self.loss == "distill" and self.train == "redux+controlnet":
            raise ColorFluxError("--loss distill has no use for the ControlNet: --train redux")


class BasicColorStage:
    def __init__(self, config: BasicColorConfig, parts: Parts) -> None:
        self.config, self.parts = config, parts
        learning = {"image_embedder": parts.load("image_embedder", config.initial_redux, FLOAT)}
        if config.train == "redux+siglip":
            learning["image_encoder"] = parts.load("image_encoder", dtype=FLOAT)
        if config.loss != "distill":
            transformer = parts.load("transformer")
            if config.train == "redux+controlnet":
                self.controlnet = learning["controlnet"] = control_from_transformer(
                    transformer, config.double_blocks, config.single_blocks
                )
            else:
                self.controlnet = parts.frozen("controlnet")
            self.transformer = parts.freeze(transformer)
        self.models = {name: parts.learning(model) for name, model in learning.items()}
        tower = self.models.get("image_encoder")
        if isinstance(tower, SiglipVisionModel):
            tower.head.requires_grad_(False)  # It comes after the tokens.
        self.trainable = nn.ModuleDict(self.models)
        self.pretrained = parts.frozen("image_embedder")
        self.fresh = FreshEncoder(parts, encodings(config)) if config.fresh_views else None

    def draw(self, batch: Batch, generators: list[torch.Generator]) -> Batch:
        if self.fresh:
            batch = self.fresh(batch)
        if self.config.token_dropout:
            seen, kept = batch["seen"], 1 - self.config.token_dropout
            masks = [torch.rand(1, seen.shape[2], generator=g) < kept for g in generators]
            batch = batch | {"seen": seen * torch.stack(masks).to(seen.device) / kept}
        if self.config.loss == "distill":
            return batch
        return with_noise(batch, "latents", generators, self.config)

    def loss(self, batch: Batch) -> Loss:
        c_v = self.visual_prompt(batch["seen"])
        with torch.no_grad():
            color_prompt = prompt_from_tokens(self.pretrained, batch["color_tokens"])
        distill = squared_error(c_v, color_prompt)
        if self.config.loss == "distill":
            return distill.mean(), {"distillation_loss": distill}
        flow = self.flow_error(batch, c_v)
        total = flow if self.config.loss == "flow" else flow + self.config.alpha * distill
        return total.mean(), {"flow_loss": flow, "distillation_loss": distill}

    def visual_prompt(self, seen: Tensor) -> Tensor:
        """Phi: c_v of image tokens (B, T, D), or of pixels (B, 3, S, S) where the tower learns."""
        tower = self.models.get("image_encoder")
        tokens = tower(pixel_values=seen).last_hidden_state if tower else seen
        return prompt_from_tokens(self.models["image_embedder"], tokens)

    def flow_error(self, batch: Batch, c_v: Tensor) -> Tensor:
        x_0, noise, t = batch["latents"], batch["noise"], batch["t"]
        x_t = interpolate(x_0, noise, t)
        prompt = after_text_tokens(c_v, self.config.text_tokens)
        given = (prompt, self.config.latent_size, self.config.guidance)
        residuals = control_residuals(self.controlnet, x_t, t, batch["gray_latents"], *given)
        predicted = predict_velocity(self.transformer, x_t, t, *given, residuals=residuals)
        return squared_error(predicted, velocity(x_0, noise))

    def blank(self, rows: int) -> Batch:
        batch = blank_batch(
            self.parts, rows, latents=("latents", "gray_latents"), tokens=("seen", "color_tokens")
        )
        if "image_encoder" in self.models:
            size = self.models["image_encoder"].config.image_size
            batch["seen"] = torch.zeros(rows, 3, size, size)
        return batch

    def sample(self, samples: list[Picture]) -> Sheet | None:
        """Photos above their colorizations from gray; none where FLUX is not loaded."""
        if self.config.loss == "distill":
            return None
        photos = unit_range(pixels(samples))
        models = {"transformer": self.transformer, "controlnet": self.controlnet, **self.models}
        draw = pipeline(self.parts, **models)
        colorized = draw(
            photos,
            text_tokens=self.config.text_tokens,
            generator=torch.Generator().manual_seed(0),
        ).images
        return Sheet([photos], [colorized])

    def save(self, folder: Path) -> None:
        for name, model in self.models.items():
            save_model(name, model, folder)


def encodings(config: BasicColorConfig) -> dict[str, Encoding]:
    learning_tower = config.train == "redux+siglip"
    columns: dict[str, Encoding] = {
        "seen": ("tower_pixels" if learning_tower else "tokens", "gray"),
        "color_tokens": ("tokens", "color"),
    }
    if config.loss != "distill":
        columns["latents"] = ("latents", "color")
        columns["gray_latents"] = ("latents", "gray")
    return columns


def basic_color_training(config: BasicColorConfig) -> Training:
    """Raises ColorFluxError when no photo is colorful enough."""
    candidates, parts = pictures(config, "basic_color"), Parts(config)
    colorful = statistics(config, candidates)[:, 0] >= config.min_colorfulness
    chosen = [p for p, enough in zip(candidates, colorful.tolist(), strict=True) if enough]
    if not chosen:
        raise ColorFluxError(f"no photo reaches --min_colorfulness {config.min_colorfulness}")
    samples = sample_pictures(config, "basic_color")
    columns = encoded_columns(parts, chosen, encodings(config))
    rows = Rows([picture.photo.file for picture in chosen], columns)
    return Training(BasicColorStage(config, parts), rows, samples)


def main(argv: list[str]) -> None:
    start(
        parse(BasicColorConfig, argv, "training.basic_color"),
        BasicColorStage,
        basic_color_training,
    )


if __name__ == "__main__":
    run(main)
