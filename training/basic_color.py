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
from diffusers.pipelines.flux.modeling_flux import ReduxImageEncoder
from torch import Tensor, nn
from transformers import PreTrainedModel

from colorflux_core.color import colorfulness, unit_range
from colorflux_core.components import load_model
from colorflux_core.errors import ColorFluxError
from colorflux_core.flow import (
    distillation_loss,
    flow_matching_loss,
    interpolate,
    velocity,
)
from colorflux_core.velocity import control_residuals, predict_velocity
from colorflux_core.visual_prompt import after_text_tokens, preprocess, prompt_from_tokens

from .config import parse, run, setting
from .data import Rows
from .loop import Batch, train
from .parts import (
    ENCODE_BATCH,
    Encoder,
    PartsConfig,
    feature_extractor,
    gray,
    images,
    part,
    pipeline,
    with_noise,
)
from .sheet import save_sheet


@dataclass
class BasicColorConfig(PartsConfig):
    epochs: float = setting(2.0, "passes over the views, where --steps is 0")
    loss: Literal["both", "flow", "distill"] = setting(
        "both", "the terms of Eq. 6 (Table 3); distill loads neither FLUX nor the ControlNet"
    )
    alpha: float = setting(0.1, "weight of L_distill in Eq. 6")
    train: Literal["redux", "redux+siglip"] = setting(
        "redux", "what learns; the paper's 'Redux model' may mean the vision tower too"
    )
    initial_redux: Path | None = setting(
        None, "Redux to start from, such as a distill run's, where it is not the pretrained one"
    )
    token_dropout: float = setting(0.0, "share of the image tokens' channels hidden from Redux")
    min_colorfulness: float = setting(15.0, "photos below this colorfulness are left out")


class VisualPrompt(nn.Module):
    """Phi: Redux, behind the vision tower where that learns too."""

    def __init__(self, redux: ReduxImageEncoder, tower: PreTrainedModel | None) -> None:
        super().__init__()
        self.redux, self.tower = redux, tower

    def forward(self, seen: Tensor) -> Tensor:
        """c_v of image tokens (B, T, D), or of pixels (B, 3, S, S) where the tower learns."""
        tokens = self.tower(pixel_values=seen).last_hidden_state if self.tower else seen
        return prompt_from_tokens(self.redux, tokens)


class BasicColorStage:
    def __init__(self, config: BasicColorConfig, samples: Tensor) -> None:
        self.config, self.samples = config, samples
        self.pretrained = part(config, "image_embedder")
        self.redux = part(config, "image_embedder")
        if config.initial_redux is not None:
            self.redux = load_model("image_embedder", config.initial_redux, torch.float32)
        self.tower = part(config, "image_encoder") if config.train == "redux+siglip" else None
        self.trainable: nn.Module = VisualPrompt(self.redux, self.tower).requires_grad_(True)
        if config.loss != "distill":
            self.transformer = part(config, "transformer")
            self.controlnet = part(config, "controlnet")

    def draw(self, batch: Batch, generator: torch.Generator) -> Batch:
        drawn = dict(batch)
        if self.config.token_dropout:
            seen, kept = batch["seen"], 1 - self.config.token_dropout
            mask = torch.rand(seen.shape[0], 1, seen.shape[2], generator=generator) < kept
            drawn["seen"] = seen * mask / kept
        if self.config.loss == "distill":
            return drawn
        return with_noise(drawn, "latents", generator, self.config)

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        c_v = self.trainable(batch["seen"])
        with torch.no_grad():
            color_prompt = prompt_from_tokens(self.pretrained, batch["color_tokens"])
        distill = distillation_loss(c_v, color_prompt)
        if self.config.loss == "distill":
            return distill, {"distillation_loss": distill.detach()}
        flow = self.flow_loss(batch, c_v)
        total = flow if self.config.loss == "flow" else flow + self.config.alpha * distill
        return total, {"flow_loss": flow.detach(), "distillation_loss": distill.detach()}

    def flow_loss(self, batch: Batch, c_v: Tensor) -> Tensor:
        x_0, noise, t = batch["latents"], batch["noise"], batch["t"]
        x_t = interpolate(x_0, noise, t)
        prompt = after_text_tokens(c_v, self.config.text_tokens)
        given = (prompt, self.config.latent_size, self.config.guidance)
        residuals = control_residuals(self.controlnet, x_t, t, batch["gray_latents"], *given)
        predicted = predict_velocity(self.transformer, x_t, t, *given, residuals=residuals)
        return flow_matching_loss(predicted, velocity(x_0, noise))

    def sample(self, path: Path) -> None:
        """Photos above their colorizations from gray."""
        if self.config.loss == "distill":
            return
        photos = unit_range(self.samples)
        trained = {"image_embedder": self.redux}
        if self.tower is not None:
            trained["image_encoder"] = self.tower
        colorized = pipeline(
            self.config, transformer=self.transformer, controlnet=self.controlnet, **trained
        )(
            photos,
            text_tokens=self.config.text_tokens,
            generator=torch.Generator().manual_seed(0),
        ).images
        save_sheet([photos, colorized], path)

    def save(self, folder: Path) -> None:
        self.redux.save_pretrained(folder / "image_embedder")
        if self.tower is not None:
            self.tower.save_pretrained(folder / "image_encoder")


def basic_color_stage(config: BasicColorConfig) -> tuple[BasicColorStage, Rows]:
    """Raises ColorFluxError when no photo is colorful enough, or the settings do not fit."""
    if config.token_dropout and config.train != "redux":
        raise ColorFluxError("--token_dropout needs --train redux: it hides what Redux is given")
    pictures, encoder = images(config), Encoder(config)
    colorful = torch.cat(
        [
            colorfulness(unit_range(chunk)) >= config.min_colorfulness
            for chunk in pictures.split(ENCODE_BATCH)
        ]
    )
    if not colorful.any():
        raise ColorFluxError(f"no photo reaches --min_colorfulness {config.min_colorfulness}")
    grays = gray(pictures)
    if config.train == "redux":
        seen = encoder.tokens(grays)
    else:
        seen = preprocess(feature_extractor(config), unit_range(grays))
    columns = {"seen": seen, "color_tokens": encoder.tokens(pictures)}
    if config.loss != "distill":
        columns["latents"] = encoder.latents(pictures)
        columns["gray_latents"] = encoder.latents(grays)
    rows = Rows({name: column[colorful] for name, column in columns.items()})
    return BasicColorStage(config, images(config, "validation", 1)[:8]), rows


def main(argv: list[str]) -> None:
    config = parse(BasicColorConfig, argv, "training.basic_color")
    train(*basic_color_stage(config), config)


if __name__ == "__main__":
    run(main)
