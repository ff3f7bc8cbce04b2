"""Stage 3, fine-color adjustment (paper 4.2, 7.3).

  python -m training.pro_dpo --recipe training/recipes/80gb.toml:pro_dpo_a
  python -m training.pro_dpo --recipe training/recipes/80gb.toml:pro_dpo_b

Progressive Diffusion-DPO (Eq. 4) on pairs of a photo (winner) and a faded copy of it (loser), both
conditioned on the gray faded photo. Run it twice: stage A with strong fading, then stage B with
mild fading, starting from A's LoRA. The defaults are the paper's stage A; stage B is

  --initial-lora FOLDER_OF_A/pro_dpo.safetensors --fading-low 0.75 --fading-high 0.95
  --learning-rate 1e-5 --output FOLDER_OF_B

The reference policy is FLUX without a LoRA in both stages; the paper does not say whether stage B's
reference is stage A's result.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from itertools import compress
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from colorflux_core.errors import ColorFluxError
from colorflux_core.model.flow import (
    BetaSchedule,
    beta_at,
    preference_terms,
    sample_path,
)
from colorflux_core.model.lora import add_lora, reference_policy, save_lora
from colorflux_core.model.velocity import control_residuals, predict_velocity
from colorflux_core.model.visual_prompt import prompt_from_tokens
from colorflux_core.options import inherit, setting
from colorflux_core.photos.color import Fading, sample_fading, unit_range

from .config import DATA, LOSS, MODEL, parse
from .data.limits import PhotoLimits
from .data.order import SampleIndex
from .data.pictures import (
    Picture,
    gray,
    gray_pictures,
    pixels,
    sample_pictures,
    training_pictures,
)
from .data.rows import Batch, Column, Rows
from .encode.encoding import (
    cached_latents,
    cached_tokens,
    color_statistics,
    latent_encoder,
    token_encoder,
)
from .launch import plan_or_train, run_command
from .models.flow_stage import FlowStage
from .models.parallel import devices, gather_to_main
from .models.parts import Parts, PartsConfig
from .stage import Columns, Loss, Sheet, Training


@dataclass
class ProDpoConfig(PartsConfig, PhotoLimits):
    epochs: float = inherit(PartsConfig, "epochs", 2.0)
    batch_size: int = inherit(PartsConfig, "batch_size", 32)
    learning_rate: float = inherit(
        PartsConfig, "learning_rate", 4e-5, help="peak learning rate; 1e-5 in stage B"
    )
    loss: Literal["dpo", "sft"] = setting(
        "dpo", "Eq. 4, or plain fine-tuning on the winners (Table 4)", group=LOSS
    )
    beta: float = setting(
        1000.0, "beta of Eq. 4, for errors that are means over dimensions", low=0, group=LOSS
    )
    beta_schedule: BetaSchedule = setting(
        "constant", "constant beta, or beta (1 - t)^2", group=LOSS
    )
    fading_low: float = setting(
        0.5, "smallest fading factor, the strongest fading; 0.75 in stage B", low=0, group=DATA
    )
    fading_high: float = setting(
        0.8, "largest fading factor, the mildest fading; 0.95 in stage B", low=0, group=DATA
    )
    overexposure: bool = setting(False, "allow losers that are too bright as well", group=DATA)
    pairs: int = setting(
        0,
        "losers per photo, faded once and cached; 0 fades again in every step, which keeps the VAE"
        " and SigLIP in memory",
        low=0,
        group=DATA,
    )
    rank: int = setting(32, "rank of a new LoRA; --initial-lora keeps its own", low=1, group=MODEL)
    initial_lora: Path | None = setting(
        None, "LoRA to start from: stage A's, for stage B", metavar="FILE", group=MODEL
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.fading_low > self.fading_high:
            raise ColorFluxError(
                f"--fading-low {self.fading_low} is above --fading-high {self.fading_high}"
            )


class ProDpoStage(FlowStage):
    """Trains a LoRA on FLUX with L_Diff-DPO (Eq. 4), or with L_FM on the winners (SFT)."""

    name = "pro_dpo"
    photo = "winner"
    columns = Columns(latents=("winner", "loser", "gray_latents"), tokens=("gray_tokens",))
    config: ProDpoConfig

    def __init__(self, config: ProDpoConfig, parts: Parts) -> None:
        super().__init__(config, parts)
        transformer = parts.store(parts.load("transformer"))
        torch.manual_seed(config.seed)
        add_lora(transformer, config.rank, start=config.initial_lora)
        self.trainable = parts.to_device(transformer)
        self.controlnet = parts.frozen("controlnet")
        self.redux = parts.frozen("image_embedder")
        if not config.pairs:
            self.encode_latents, self.encode_tokens = latent_encoder(parts), token_encoder(parts)

    def prepare_batch(self, batch: Batch, generators: list[torch.Generator]) -> Batch:
        """Add noise and timesteps, shared by winner and loser; encode fresh losers first."""
        if not self.config.pairs:
            faded = batch["loser_pixels"]
            grays = unit_range(gray(faded))
            batch = batch | {
                "loser": self.encode_latents(unit_range(faded)).float(),
                "gray_latents": self.encode_latents(grays).float(),
                "gray_tokens": self.encode_tokens(grays),
            }
        return super().prepare_batch(batch, generators)

    def loss(self, batch: Batch) -> Loss:
        """L_Diff-DPO (Eq. 4), or L_FM (Eq. 2) with ``--loss sft``."""
        with torch.no_grad():
            c_v = prompt_from_tokens(self.redux, batch["gray_tokens"])
        return self.dpo(batch, c_v) if self.config.loss == "dpo" else self.sft(batch, c_v)

    def dpo(self, batch: Batch, c_v: Tensor) -> Loss:
        """L_Diff-DPO (Eq. 4).

        Winner and loser share a batch, and both policies share the ControlNet's residuals.
        """
        # x_t and the conditions, winners first.
        photos = torch.cat([batch["winner"], batch["loser"]])
        noise, t = batch["noise"].repeat(2, 1, 1), batch["t"].repeat(2)
        gray_latents = batch["gray_latents"].repeat(2, 1, 1)
        conditions = self.conditions(c_v.repeat(2, 1, 1))
        path = sample_path(photos, noise, t)

        # Velocities of the reference (LoRA disabled) and of the policy.
        with torch.no_grad():
            residuals = control_residuals(self.controlnet, path.x_t, t, gray_latents, conditions)
            with reference_policy(self.trainable):
                reference = predict_velocity(self.trainable, path.x_t, t, conditions, residuals)
        policy = predict_velocity(self.trainable, path.x_t, t, conditions, residuals)

        beta_t = beta_at(batch["t"], self.config.beta, self.config.beta_schedule)
        terms = preference_terms(policy, reference, path.velocity, beta_t)
        return terms.loss, {
            "dpo_loss": terms.loss,
            "implicit_accuracy": terms.implicit_accuracy,
            "margin": terms.margin,
            "logit": terms.logit,
            "winner_error": terms.winner_error,
            "loser_error": terms.loser_error,
        }

    def sft(self, batch: Batch, c_v: Tensor) -> Loss:
        """L_FM (Eq. 2) on the winners, conditioned on the gray losers."""
        error = self.flow_error(batch, c_v, self.trainable, self.controlnet)
        return error.mean(), {"flow_loss": error}

    def sample(self, samples: list[Picture]) -> Sheet:
        """Rows of photos, faded photos, the reference's colorizations, and the policy's."""
        photos = unit_range(pixels(samples))
        faded = unit_range(pixels(losers(samples, self.config, "samples")))
        colorize = self.colorizer(
            transformer=self.trainable, controlnet=self.controlnet, image_embedder=self.redux
        )
        reference = colorize(faded, lora_scale=0.0)
        return Sheet([photos, faded, reference], [colorize(faded)])

    def save(self, folder: Path) -> None:
        weights = {
            n: gather_to_main(p) for n, p in self.trainable.named_parameters() if p.requires_grad
        }
        if devices().is_main_process:
            folder.mkdir(parents=True, exist_ok=True)
            save_lora(self.trainable, folder / "pro_dpo.safetensors", weights=weights)


def random_fading(config: ProDpoConfig, seed: str) -> Fading:
    """A fading drawn with factors in [fading_low, fading_high] (4.2.1), reproducible by seed."""
    return sample_fading(
        random.Random(f"{config.seed}/{seed}"),
        config.fading_low,
        config.fading_high,
        overexposure=config.overexposure,
    )


def losers(winners: list[Picture], config: ProDpoConfig, seed: str) -> list[Picture]:
    """x_l: each picture with its own random fading (4.2.1)."""
    return [
        replace(winner, fading=random_fading(config, f"{seed}/{winner.key}")) for winner in winners
    ]


@dataclass(frozen=True)
class FreshLosers:
    """A column of `Rows`: each picture, uint8 (3, S, S), with a new fading at every position."""

    winners: list[Picture]
    config: ProDpoConfig

    def __call__(self, index: SampleIndex) -> Tensor:
        fading = random_fading(self.config, f"place {index.position}")
        return replace(self.winners[index.row], fading=fading).pixels()


def preference_rows(winners: list[Picture], config: ProDpoConfig, parts: Parts) -> Rows:
    """Triplets (c, x_w, x_l); with ``--pairs 0``, c and x_l are encoded in each step instead."""
    pairs = winners * (config.pairs or 1)
    columns: dict[str, Column] = {"winner": cached_latents(parts, pairs)}
    if config.pairs:
        faded = [
            loser for pair in range(config.pairs) for loser in losers(winners, config, f"{pair}")
        ]
        grays = gray_pictures(faded)
        columns["loser"] = cached_latents(parts, faded)
        columns["gray_latents"] = cached_latents(parts, grays)
        columns["gray_tokens"] = cached_tokens(parts, grays)
    else:
        columns["loser_pixels"] = FreshLosers(winners, config)
    return Rows([picture.photo.file for picture in pairs], columns)


def colorful_and_exposed(statistics: Tensor, config: ProDpoConfig) -> Tensor:
    """Which photos have chromatic diversity and proper exposure (7.3), as a mask (N,).

    ``statistics`` (N, 3) holds colorfulness, mean HSV saturation and mean HSV value.
    """
    colorfulness, saturation, value = statistics.unbind(1)
    return (
        (colorfulness >= config.min_colorfulness)
        & (saturation >= config.min_saturation)
        & (saturation <= config.max_saturation)
        & (value >= config.min_value)
        & (value <= config.max_value)
    )


def pro_dpo_training(config: ProDpoConfig) -> Training:
    """The stage, its rows and samples. Raises ColorFluxError if no photo can be used."""
    parts = Parts(config)
    candidates = training_pictures(config, "pro_dpo")
    samples = sample_pictures(config, "pro_dpo")
    usable = colorful_and_exposed(color_statistics(config, candidates), config)
    winners = list(compress(candidates, usable.tolist()))
    if not winners:
        raise ColorFluxError(
            "no photo meets --min-colorfulness, --min-saturation, --max-saturation, --min-value and"
            " --max-value"
        )
    rows = preference_rows(winners, config, parts)
    return Training(ProDpoStage(config, parts), rows, samples)


def main(argv: list[str]) -> None:
    plan_or_train(parse(ProDpoConfig, argv, "training.pro_dpo"), ProDpoStage, pro_dpo_training)


if __name__ == "__main__":
    run_command(main)
