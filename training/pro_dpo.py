"""Stage 3, fine-color adjustment (paper 4.2, 7.3): ``python -m training.pro_dpo``.

Progressive Diffusion-DPO (Eq. 4) on pairs of a photo (winner) and its faded self (loser), both
under the condition of the gray faded photo. Run it twice: stage A with strong fading, then stage B
with mild fading, starting from A's LoRA. The defaults are the paper's stage A; stage B is

  --initial_lora FOLDER_OF_A/pro_dpo.safetensors --fading_low 0.75 --fading_high 0.95
  --learning_rate 1e-5 --output FOLDER_OF_B
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from PIL import Image
from torch import Tensor

from colorflux_core.color import colorfulness, fade, hsv_statistics, sample_fading, unit_range
from colorflux_core.errors import ColorFluxError
from colorflux_core.flow import (
    beta_at,
    flow_matching_loss,
    interpolate,
    preference_terms,
    velocity,
)
from colorflux_core.lora import add_lora, reference_policy, save_lora
from colorflux_core.velocity import Residuals, control_residuals, predict_velocity
from colorflux_core.visual_prompt import after_text_tokens, prompt_from_tokens

from .config import parse, run, setting
from .data import Rows, to_uint8
from .loop import Batch, train
from .parts import ENCODE_BATCH, Encoder, PartsConfig, gray, images, part, pipeline, with_noise
from .sheet import save_sheet


@dataclass
class ProDpoConfig(PartsConfig):
    epochs: float = setting(2.0, "passes over the pairs, where --steps is 0")
    batch_size: int = setting(32, "pairs for one optimizer step")
    learning_rate: float = setting(4e-5, "AdamW's peak learning rate; 1e-5 in stage B")
    loss: Literal["dpo", "sft"] = setting(
        "dpo", "Eq. 4, or plain fine-tuning on the winners (Table 4)"
    )
    fading_low: float = setting(0.5, "strongest fading factor; 0.75 in stage B")
    fading_high: float = setting(0.8, "mildest fading factor; 0.95 in stage B")
    overexposure: bool = setting(False, "let brightness go above 1 as well")
    pairs: int = setting(1, "differently faded losers of each photo")
    rank: int = setting(32, "rank of the LoRA")
    initial_lora: Path | None = setting(None, "stage A's LoRA, for stage B to go on from")
    beta: float = setting(1000.0, "Eq. 4's beta, for errors that are means over dimensions")
    beta_schedule: Literal["constant", "time"] = setting(
        "constant", "constant beta, or beta (1 - t)^2"
    )
    min_colorfulness: float = setting(15.0, "photos below this colorfulness are left out")
    min_saturation: float = setting(0.3, "photos below this mean HSV saturation are left out")
    max_saturation: float = setting(0.7, "photos above this mean HSV saturation are left out")
    min_value: float = setting(0.4, "photos below this mean HSV value are left out")
    max_value: float = setting(0.8, "photos above this mean HSV value are left out")


class ProDpoStage:
    def __init__(self, config: ProDpoConfig, samples: Tensor) -> None:
        torch.manual_seed(config.seed)
        self.config, self.samples = config, samples
        self.controlnet = part(config, "controlnet")
        self.redux = part(config, "image_embedder")
        self.trainable = part(config, "transformer")
        add_lora(self.trainable, config.rank, start=config.initial_lora)

    def draw(self, batch: Batch, generator: torch.Generator) -> Batch:
        """One noise and one timestep for winner and loser."""
        return with_noise(batch, "winner", generator, self.config)

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        with torch.no_grad():
            c_v = prompt_from_tokens(self.redux, batch["loser_tokens"])
        prompt = after_text_tokens(c_v, self.config.text_tokens)
        return self.dpo(batch, prompt) if self.config.loss == "dpo" else self.sft(batch, prompt)

    def dpo(self, batch: Batch, prompt: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
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
            "implicit_accuracy": terms.implicit_accuracy,
            "logit": terms.logit.detach().mean(),
            "winner_error": terms.winner_error.detach().mean(),
            "loser_error": terms.loser_error.detach().mean(),
        }

    def sft(self, batch: Batch, prompt: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """L_FM on (c, x_w)."""
        x_0, noise, t = batch["winner"], batch["noise"], batch["t"]
        x_t = interpolate(x_0, noise, t)
        residuals = self.residuals(x_t, t, batch["condition"], prompt)
        predicted = self.predict(x_t, t, prompt, residuals)
        return flow_matching_loss(predicted, velocity(x_0, noise)), {}

    @torch.no_grad()
    def residuals(self, x_t: Tensor, t: Tensor, condition: Tensor, prompt: Tensor) -> Residuals:
        given = (prompt, self.config.latent_size, self.config.guidance)
        return control_residuals(self.controlnet, x_t, t, condition, *given)

    def predict(self, x_t: Tensor, t: Tensor, prompt: Tensor, residuals: Residuals) -> Tensor:
        given = (prompt, self.config.latent_size, self.config.guidance)
        return predict_velocity(self.trainable, x_t, t, *given, residuals=residuals)

    def sample(self, path: Path) -> None:
        """Faded photos; colorized by the reference; colorized by the policy; the true photos."""
        true = unit_range(self.samples)
        faded = unit_range(faded_pictures(self.samples, self.config, seed="samples"))
        draw = pipeline(
            self.config,
            transformer=self.trainable,
            controlnet=self.controlnet,
            image_embedder=self.redux,
        )
        colorized = [
            draw(
                faded,
                text_tokens=self.config.text_tokens,
                lora_scale=scale,
                generator=torch.Generator().manual_seed(0),
            ).images
            for scale in (0.0, 1.0)
        ]
        save_sheet([faded, *colorized, true], path)

    def save(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        save_lora(self.trainable, folder / "pro_dpo.safetensors")


def faded_pictures(pictures: Tensor, config: ProDpoConfig, seed: str) -> Tensor:
    """x_l (N, 3, H, W) uint8: each picture with a fading of its own (4.2.1)."""
    faded = []
    for index, picture in enumerate(pictures):
        rng = random.Random(f"{config.seed}/{seed}/{index}")
        fading = sample_fading(
            rng, config.fading_low, config.fading_high, overexposure=config.overexposure
        )
        image = Image.fromarray(picture.permute(1, 2, 0).numpy())
        faded.append(to_uint8(fade(image, fading)))
    return torch.stack(faded)


def well_exposed(pictures: Tensor, config: ProDpoConfig) -> Tensor:
    """Which of (N, 3, H, W) uint8 have chromatic diversity and proper exposure (7.3)."""
    rgb = unit_range(pictures)
    saturation, value = hsv_statistics(rgb)
    return (
        (colorfulness(rgb) >= config.min_colorfulness)
        & (saturation >= config.min_saturation)
        & (saturation <= config.max_saturation)
        & (value >= config.min_value)
        & (value <= config.max_value)
    )


def preference_rows(pictures: Tensor, chosen: Tensor, config: ProDpoConfig) -> Rows:
    """Triplets (c, x_w, x_l) of the ``chosen`` (N,) among ``pictures`` (N, 3, H, W) uint8."""
    encoder = Encoder(config)
    losers = faded_pictures(pictures[chosen].repeat(config.pairs, 1, 1, 1), config, seed="pairs")
    return Rows(
        {
            "winner": encoder.latents(pictures)[chosen].repeat(config.pairs, 1, 1),
            "loser": encoder.latents(losers),
            "condition": encoder.latents(gray(losers)),
            "loser_tokens": encoder.tokens(gray(losers)),
        }
    )


def pro_dpo_stage(config: ProDpoConfig) -> tuple[ProDpoStage, Rows]:
    """Raises ColorFluxError when no photo is well exposed."""
    pictures = images(config)
    chosen = torch.cat([well_exposed(chunk, config) for chunk in pictures.split(ENCODE_BATCH)])
    if not chosen.any():
        raise ColorFluxError("no photo is within --min/max_saturation and --min/max_value")
    rows = preference_rows(pictures, chosen, config)
    return ProDpoStage(config, images(config, "validation", 1)[:8]), rows


def main(argv: list[str]) -> None:
    config = parse(ProDpoConfig, argv, "training.pro_dpo")
    train(*pro_dpo_stage(config), config)


if __name__ == "__main__":
    run(main)
