"""Stage 2, basic color learning (paper 4.1.2, 7.2).

  python -m training.basic_color --recipe training/recipes/80gb.toml

Only Redux is trained. From the *gray* photo it learns to predict the visual prompt of the color
photo: L = L_FM + alpha L_distill (Eq. 6). FLUX and the ControlNet are frozen. The defaults are the
paper's.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import compress
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn
from transformers import SiglipVisionModel

from colorflux_core.bundles.components import SiglipImageProcessor
from colorflux_core.errors import ColorFluxError
from colorflux_core.model.control import control_from_transformer
from colorflux_core.model.flow import squared_error
from colorflux_core.model.visual_prompt import preprocess, prompt_from_tokens
from colorflux_core.options import inherit, setting
from colorflux_core.photos.color import unit_range

from .config import LOSS, MODEL, OPTIMIZATION, parse
from .data.limits import PhotoLimits
from .data.order import SampleIndex
from .data.pictures import (
    Picture,
    gray_pictures,
    pixels,
    sample_pictures,
    training_pictures,
)
from .data.rows import Batch, Column, Rows
from .encode.encoding import cached_latents, cached_tokens, color_statistics
from .launch import plan_or_train, run_command
from .models.artifact import save_model
from .models.flow_stage import FlowStage
from .models.parts import Parts, PartsConfig, feature_extractor
from .stage import Columns, Loss, Sheet, Training


@dataclass
class BasicColorConfig(PartsConfig):
    epochs: float = inherit(PartsConfig, "epochs", 2.0)
    loss: Literal["both", "flow", "distill"] = setting(
        "both",
        "terms of Eq. 6 (Table 3); distill loads neither FLUX nor the ControlNet",
        group=LOSS,
    )
    alpha: float = setting(0.1, "weight of L_distill in Eq. 6", low=0, group=LOSS)
    train: Literal["redux", "redux+siglip", "redux+controlnet"] = setting(
        "redux",
        "models to train: the paper's 'Redux model' may include SigLIP; with a new ControlNet,"
        " structure and color are learned jointly (Fig. 5)",
        group=MODEL,
    )
    double_blocks: int = setting(
        4, "double blocks of a new ControlNet, for --train redux+controlnet", low=0, group=MODEL
    )
    single_blocks: int = setting(
        10, "single blocks of a new ControlNet, for --train redux+controlnet", low=0, group=MODEL
    )
    initial_redux: Path | None = setting(
        None,
        "Redux to start from, such as a distill run's, instead of the pretrained one",
        group=MODEL,
    )
    token_dropout: float = setting(
        0.0,
        "dropout rate of the image tokens' channels before Redux",
        low=0,
        high=0.99,
        group=OPTIMIZATION,
    )
    min_colorfulness: float = inherit(PhotoLimits, "min_colorfulness")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.token_dropout and self.train == "redux+siglip":
            raise ColorFluxError("--token-dropout cannot be combined with --train redux+siglip")
        if self.loss == "distill" and self.train == "redux+controlnet":
            raise ColorFluxError("--loss distill does not train a ControlNet: use --train redux")


class BasicColorStage(FlowStage):
    """Trains Redux, and optionally the vision tower or the ControlNet (Eq. 6).

    The column ``gray_input`` holds the gray photo's image tokens (B, T, D), or its pixels
    (B, 3, S, S) if the vision tower is trained.
    """

    name = "basic_color"
    config: BasicColorConfig

    def __init__(self, config: BasicColorConfig, parts: Parts) -> None:
        super().__init__(config, parts)
        trained = {
            "image_embedder": parts.load("image_embedder", config.initial_redux, torch.float32)
        }
        if config.train == "redux+siglip":
            trained["image_encoder"] = parts.load("image_encoder", dtype=torch.float32)
        if config.loss != "distill":
            transformer = parts.load("transformer")
            if config.train == "redux+controlnet":
                self.controlnet = trained["controlnet"] = control_from_transformer(
                    transformer, config.double_blocks, config.single_blocks
                )
            else:
                self.controlnet = parts.frozen("controlnet")
            self.transformer = parts.freeze(transformer)
        self.models = {name: parts.trained(model) for name, model in trained.items()}
        tower = self.models.get("image_encoder")
        if isinstance(tower, SiglipVisionModel):
            tower.head.requires_grad_(False)  # The tokens do not depend on the pooling head.
        self.trainable = nn.ModuleDict(self.models)
        self.pretrained = parts.frozen("image_embedder")
        self.columns = Columns(
            latents=("latents", "gray_latents") if config.loss != "distill" else (),
            tokens=("color_tokens",) if tower is not None else ("gray_input", "color_tokens"),
        )

    def prepare_batch(self, batch: Batch, generators: list[torch.Generator]) -> Batch:
        """Add noise and timesteps; drop token channels if ``--token-dropout`` is set."""
        if self.config.token_dropout:
            tokens, keep = batch["gray_input"], 1 - self.config.token_dropout
            masks = [torch.rand(1, tokens.shape[2], generator=g) < keep for g in generators]
            batch = batch | {"gray_input": tokens * torch.stack(masks).to(tokens.device) / keep}
        if self.config.loss == "distill":
            return batch
        return super().prepare_batch(batch, generators)

    def loss(self, batch: Batch) -> Loss:
        """L_FM + alpha L_distill (Eq. 6), or one of the two."""
        c_v = self.visual_prompt(batch["gray_input"])
        with torch.no_grad():
            color_prompt = prompt_from_tokens(self.pretrained, batch["color_tokens"])
        distill = squared_error(c_v, color_prompt)
        if self.config.loss == "distill":
            return distill.mean(), {"distillation_loss": distill}
        flow = self.flow_error(batch, c_v, self.transformer, self.controlnet)
        total = flow if self.config.loss == "flow" else flow + self.config.alpha * distill
        return total.mean(), {"flow_loss": flow, "distillation_loss": distill}

    def visual_prompt(self, gray_input: Tensor) -> Tensor:
        """Phi: c_v of image tokens (B, T, D), or of pixels (B, 3, S, S) if the tower is trained."""
        tower = self.models.get("image_encoder")
        tokens = tower(pixel_values=gray_input).last_hidden_state if tower else gray_input
        return prompt_from_tokens(self.models["image_embedder"], tokens)

    def blank(self, rows: int) -> Batch:
        batch = super().blank(rows)
        if "image_encoder" in self.models:
            size = self.models["image_encoder"].config.image_size
            batch["gray_input"] = torch.zeros(rows, 3, size, size)
        return batch

    def sample(self, samples: list[Picture]) -> Sheet | None:
        """The photos, and below them colorized from gray. None if FLUX is not loaded."""
        if self.config.loss == "distill":
            return None
        photos = unit_range(pixels(samples))
        models = {"transformer": self.transformer, "controlnet": self.controlnet, **self.models}
        return Sheet([photos], [self.colorizer(**models)(photos)])

    def save(self, folder: Path) -> None:
        for name, model in self.models.items():
            save_model(name, model, folder)


@dataclass(frozen=True)
class TowerPixels:
    """A column of `Rows`: each picture's pixels (3, S, S) as the vision tower expects them."""

    pictures: list[Picture]
    processor: SiglipImageProcessor

    def __call__(self, index: SampleIndex) -> Tensor:
        rgb = unit_range(self.pictures[index.row].pixels())
        return preprocess(self.processor, rgb[None])[0]


def basic_color_training(config: BasicColorConfig) -> Training:
    """The stage, its rows and samples. Raises ColorFluxError if no photo is colorful enough."""
    parts = Parts(config)
    candidates = training_pictures(config, "basic_color")
    samples = sample_pictures(config, "basic_color")
    colorful = color_statistics(config, candidates)[:, 0] >= config.min_colorfulness
    chosen = list(compress(candidates, colorful.tolist()))
    if not chosen:
        raise ColorFluxError(f"no photo reaches --min-colorfulness {config.min_colorfulness}")
    grays = gray_pictures(chosen)
    columns: dict[str, Column] = {"color_tokens": cached_tokens(parts, chosen)}
    if config.train == "redux+siglip":
        columns["gray_input"] = TowerPixels(grays, feature_extractor(config))
    else:
        columns["gray_input"] = cached_tokens(parts, grays)
    if config.loss != "distill":
        columns["latents"] = cached_latents(parts, chosen)
        columns["gray_latents"] = cached_latents(parts, grays)
    rows = Rows([picture.photo.file for picture in chosen], columns)
    return Training(BasicColorStage(config, parts), rows, samples)


def main(argv: list[str]) -> None:
    plan_or_train(
        parse(BasicColorConfig, argv, "training.basic_color"),
        BasicColorStage,
        basic_color_training,
    )


if __name__ == "__main__":
    run_command(main)
