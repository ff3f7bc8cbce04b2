"""Stage 3, fine-color adjustment (paper 4.2, 7.3): ``python -m training.pro_dpo``.

Progressive Diffusion-DPO (Eq. 4) on pairs of a photo (winner) and its faded self (loser), both
under the condition of the gray faded photo. Run it twice: stage A with strong fading, then stage B
with mild fading, starting from A's LoRA. The defaults are the paper's stage A; stage B is

  --initial_lora FOLDER_OF_A/pro_dpo.safetensors --fading_low 0.75 --fading_high 0.95
  --learning_rate 1e-5 --output FOLDER_OF_B
"""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from colorflux_core.color import Fading, sample_fading, unit_range
from colorflux_core.errors import ColorFluxError
from colorflux_core.flow import (
    beta_at,
    interpolate,
    preference_terms,
    squared_error,
    velocity,
)
from colorflux_core.lora import add_lora, reference_policy, save_lora
from colorflux_core.velocity import Residuals, control_residuals, predict_velocity
from colorflux_core.visual_prompt import after_text_tokens, prompt_from_tokens

from .config import parse, run, setting
from .data import Batch, Column, Picture, Rows, gray, gray_pictures, pixels
from .encoding import latents, statistics, tokens
from .fresh import Encoding, FreshEncoder
from .loop import Loss, Training, start
from .order import Place
from .parallel import devices, gathered
from .parts import (
    Parts,
    PartsConfig,
    blank_batch,
    pictures,
    pipeline,
    sample_pictures,
    with_noise,
)
from .sheet import Sheet


@dataclass
class ProDpoConfig(PartsConfig):
    epochs: float = setting(
        2.0, "passes over the pairs, where --steps is 0", low=0, may_change=True
    )
    batch_size: int = setting(32, "pairs for one optimizer step", low=1)
    learning_rate: float = setting(4e-5, "AdamW's peak learning rate; 1e-5 in stage B", low=0)
    loss: Literal["dpo", "sft"] = setting(
        "dpo", "Eq. 4, or plain fine-tuning on the winners (Table 4)"
    )
    fading_low: float = setting(0.5, "strongest fading factor; 0.75 in stage B", low=0)
    fading_high: float = setting(0.8, "mildest fading factor; 0.95 in stage B", low=0)
    overexposure: bool = setting(False, "let brightness go above 1 as well")
    pairs: int = setting(
        0,
        "losers of each photo, faded once and kept; 0 fades anew in every step, for which the VAE"
        " and the vision tower stay loaded",
        low=0,
    )
    rank: int = setting(32, "rank of the LoRA", low=1)
    initial_lora: Path | None = setting(None, "stage A's LoRA, for stage B to go on from")
    beta: float = setting(1000.0, "Eq. 4's beta, for errors that are means over dimensions", low=0)
    beta_schedule: Literal["constant", "time"] = setting(
        "constant", "constant beta, or beta (1 - t)^2"
    )
    min_colorfulness: float = setting(15.0, "photos below this colorfulness are left out", low=0)
    min_saturation: float = setting(
        0.3, "photos below this mean HSV saturation are left out", low=0, high=1
    )
    max_saturation: float = setting(
        0.7, "photos above this mean HSV saturation are left out", low=0, high=1
    )
    min_value: float = setting(0.4, "photos below this mean HSV value are left out", low=0, high=1)
    max_value: float = setting(0.8, "photos above this mean HSV value are left out", low=0, high=1)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.pairs and self.fresh_views:
            raise ColorFluxError("--fresh_views needs losers that are fresh too: --pairs 0")
        if self.fading_low > self.fading_high:
            raise ColorFluxError(
                f"--fading_low {self.fading_low} is above --fading_high {self.fading_high}"
            )


class ProDpoStage:
    def __init__(self, config: ProDpoConfig, parts: Parts) -> None:
        self.config, self.parts = config, parts
        transformer = parts.hold(parts.load("transformer"))
        torch.manual_seed(config.seed)
        add_lora(transformer, config.rank, start=config.initial_lora)
        self.trainable = parts.place(transformer)
        self.controlnet = parts.frozen("controlnet")
        self.redux = parts.frozen("image_embedder")
        if not config.pairs:
            columns: dict[str, Encoding] = {
                "loser": ("latents", "color"),
                "loser_tokens": ("tokens", "gray"),
            }
            self.encoder = FreshEncoder(parts, columns)

    def draw(self, batch: Batch, generators: list[torch.Generator]) -> Batch:
        """One noise and one timestep for winner and loser."""
        if not self.config.pairs:
            batch = batch | self.encoded(batch)
        return with_noise(batch, "winner", generators, self.config)

    def encoded(self, batch: Batch) -> Batch:
        """What the fresh pixels of a batch are encoded into."""
        encode, faded = self.encoder.encode, batch["loser_pixels"]
        grays = unit_range(gray(faded))
        columns = {
            "loser": encode("latents", unit_range(faded)),
            "condition": encode("latents", grays),
            "loser_tokens": encode("tokens", grays),
        }
        if "winner_pixels" in batch:
            columns["winner"] = encode("latents", unit_range(batch["winner_pixels"]))
        return columns

    def loss(self, batch: Batch) -> Loss:
        with torch.no_grad():
            c_v = prompt_from_tokens(self.redux, batch["loser_tokens"])
        prompt = after_text_tokens(c_v, self.config.text_tokens)
        return self.dpo(batch, prompt) if self.config.loss == "dpo" else self.sft(batch, prompt)

    def dpo(self, batch: Batch, prompt: Tensor) -> Loss:
        """Winner and loser in one batch; the ControlNet runs once for policy and reference."""
        photos = torch.cat([batch["winner"], batch["loser"]])
        noise, t = batch["noise"].repeat(2, 1, 1), batch["t"].repeat(2)
        condition, prompt = batch["condition"].repeat(2, 1, 1), prompt.repeat(2, 1, 1)
        x_t = interpolate(photos, noise, t)

        residuals = self.residuals(x_t, t, condition, prompt)
        with torch.no_grad(), reference_policy(self.trainable):
            reference = self.predict(x_t, t, prompt, residuals)
        policy = self.predict(x_t, t, prompt, residuals)

        policy_winner, policy_loser = policy.chunk(2)
        reference_winner, reference_loser = reference.chunk(2)
        winner_velocity, loser_velocity = velocity(photos, noise).chunk(2)
        terms = preference_terms(
            policy_winner,
            policy_loser,
            reference_winner,
            reference_loser,
            winner_velocity,
            loser_velocity,
            beta_at(batch["t"], self.config.beta, self.config.beta_schedule),
        )
        return terms.loss, {
            "dpo_loss": terms.loss,
            "implicit_accuracy": terms.implicit_accuracy,
            "margin": terms.margin,
            "logit": terms.logit,
            "winner_error": terms.winner_error,
            "loser_error": terms.loser_error,
        }

    def sft(self, batch: Batch, prompt: Tensor) -> Loss:
        """L_FM on (c, x_w)."""
        x_0, noise, t = batch["winner"], batch["noise"], batch["t"]
        x_t = interpolate(x_0, noise, t)
        residuals = self.residuals(x_t, t, batch["condition"], prompt)
        predicted = self.predict(x_t, t, prompt, residuals)
        error = squared_error(predicted, velocity(x_0, noise))
        return error.mean(), {"flow_loss": error}

    @torch.no_grad()
    def residuals(self, x_t: Tensor, t: Tensor, condition: Tensor, prompt: Tensor) -> Residuals:
        given = (prompt, self.config.latent_size, self.config.guidance)
        return control_residuals(self.controlnet, x_t, t, condition, *given)

    def predict(self, x_t: Tensor, t: Tensor, prompt: Tensor, residuals: Residuals) -> Tensor:
        given = (prompt, self.config.latent_size, self.config.guidance)
        return predict_velocity(self.trainable, x_t, t, *given, residuals=residuals)

    def blank(self, rows: int) -> Batch:
        return blank_batch(
            self.parts,
            rows,
            latents=("winner", "loser", "condition"),
            tokens=("loser_tokens",),
        )

    def sample(self, samples: list[Picture]) -> Sheet:
        """Faded photos and the true ones; colorized by the reference; colorized by the policy."""
        true, faded = (
            unit_range(pixels(of)) for of in (samples, losers(samples, self.config, "samples"))
        )
        draw = pipeline(
            self.parts,
            transformer=self.trainable,
            controlnet=self.controlnet,
            image_embedder=self.redux,
        )
        reference, policy = (
            draw(
                faded,
                text_tokens=self.config.text_tokens,
                lora_scale=scale,
                generator=torch.Generator().manual_seed(0),
            ).images
            for scale in (0.0, 1.0)
        )
        return Sheet([true, faded, reference], [policy])

    def save(self, folder: Path) -> None:
        weights = {n: gathered(p) for n, p in self.trainable.named_parameters() if p.requires_grad}
        if devices().is_main_process:
            folder.mkdir(parents=True, exist_ok=True)
            save_lora(self.trainable, folder / "pro_dpo.safetensors", weights=weights)


def fading(config: ProDpoConfig, seed: str) -> Fading:
    return sample_fading(
        random.Random(f"{config.seed}/{seed}"),
        config.fading_low,
        config.fading_high,
        overexposure=config.overexposure,
    )


def losers(winners: list[Picture], config: ProDpoConfig, seed: str) -> list[Picture]:
    """x_l: each picture with a fading of its own (4.2.1)."""
    return [replace(winner, fading=fading(config, f"{seed}/{winner.key}")) for winner in winners]


@dataclass(frozen=True)
class FreshWinners:
    """A column: each picture, uint8 (3, S, S), or a new part of its photo at every place."""

    winners: list[Picture]
    config: ProDpoConfig

    def picture(self, place: Place) -> Picture:
        winner = self.winners[place.row]
        return replace(winner, view=1 + place.place) if self.config.fresh_views else winner

    def __call__(self, place: Place) -> Tensor:
        return self.picture(place).pixels()


@dataclass(frozen=True)
class FreshLosers(FreshWinners):
    """A column: the winner faded anew at every place."""

    def __call__(self, place: Place) -> Tensor:
        faded = fading(self.config, f"place {place.place}")
        return replace(self.picture(place), fading=faded).pixels()


def preference_rows(winners: list[Picture], config: ProDpoConfig, parts: Parts) -> Rows:
    """Triplets (c, x_w, x_l); where losers are fresh, c and x_l are made of them in the step."""
    pairs = winners * (config.pairs or 1)
    columns: dict[str, Column] = {}
    if config.fresh_views:
        columns["winner_pixels"] = FreshWinners(winners, config)
    else:
        columns["winner"] = latents(parts, pairs)
    if config.pairs:
        faded = [
            loser for pair in range(config.pairs) for loser in losers(winners, config, f"{pair}")
        ]
        grays = gray_pictures(faded)
        columns["loser"] = latents(parts, faded)
        columns["condition"] = latents(parts, grays)
        columns["loser_tokens"] = tokens(parts, grays)
    else:
        columns["loser_pixels"] = FreshLosers(winners, config)
    return Rows([picture.photo.file for picture in pairs], columns)


def well_exposed(statistics: Tensor, config: ProDpoConfig) -> Tensor:
    """Which of (N, 3) color statistics show chromatic diversity and proper exposure (7.3)."""
    colorfulness, saturation, value = statistics.unbind(1)
    return (
        (colorfulness >= config.min_colorfulness)
        & (saturation >= config.min_saturation)
        & (saturation <= config.max_saturation)
        & (value >= config.min_value)
        & (value <= config.max_value)
    )


def pro_dpo_training(config: ProDpoConfig) -> Training:
    """Raises ColorFluxError when no photo is well exposed."""
    candidates, parts = pictures(config, "pro_dpo"), Parts(config)
    fit = well_exposed(statistics(config, candidates), config)
    winners = [p for p, fits in zip(candidates, fit.tolist(), strict=True) if fits]
    if not winners:
        raise ColorFluxError("no photo is within --min/max_saturation and --min/max_value")
    rows = preference_rows(winners, config, parts)
    samples = sample_pictures(config, "pro_dpo")
    return Training(ProDpoStage(config, parts), rows, samples)


def main(argv: list[str]) -> None:
    start(parse(ProDpoConfig, argv, "training.pro_dpo"), ProDpoStage, pro_dpo_training)


if __name__ == "__main__":
    run(main)
