"""Compare Pro-DPO steps of our stage with a plain port of diffusers' Diffusion-DPO example.

    python -m benchmarks.pro_dpo [--photos FOLDER] [--batch-size N] [--steps N]

Both train a LoRA for nano with the same photos, fading, noise and timesteps, on the CPU and in
float32: once with fixed losers, as in the example, and once with losers faded in every step. Each
side runs in its own process and they alternate. The comparison uses CPU time, including data
loading, because it depends less on other load than wall time. Our one-time encoding is counted in
the seconds before the first step.
"""

from __future__ import annotations

import argparse
import functools
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from benchmarks.s3diff import process
from benchmarks.versus_diffusers import peak_memory
from training.data.pictures import training_pictures

# Keep the parent small: a child process inherits its parent's peak memory.
if TYPE_CHECKING:
    from torch import Tensor, nn

    from training.data.order import SampleIndex
    from training.pro_dpo import ProDpoConfig

NANO = Path(__file__).parent.parent / "models/nano"
PHOTO_KINDS = {".jpeg", ".jpg", ".png", ".webp"}
SYNTHETIC_PHOTOS = 16
VAE_BATCH = 8
"""Images that diffusers' example encodes at once."""


@dataclass(frozen=True)
class Ground:
    """The inputs of both sides; ``folder`` is for the manifest and our encoded data."""

    folder: Path
    photos: Path
    batch_size: int
    pairs: int
    base: Path = NANO
    canvas: int = 256
    text_tokens: int = 0
    rank: int = 16

    @property
    def manifest(self) -> Path:
        return self.folder / "photos.csv"

    def config(self) -> ProDpoConfig:
        from training.pro_dpo import ProDpoConfig

        return ProDpoConfig(
            manifest=self.manifest,
            photos=self.photos,
            cache=self.folder,
            workers=0,
            batch_size=self.batch_size,
            pairs=self.pairs,
            base=self.base,
            canvas=self.canvas,
            text_tokens=self.text_tokens,
            rank=self.rank,
            precision="no",
            frozen="float32",
            min_colorfulness=0.0,
            min_saturation=0.0,
            max_saturation=1.0,
            min_value=0.0,
            max_value=1.0,
        )


class Training(NamedTuple):
    """One side: the model with the LoRA, the number of rows, and the loss of a batch."""

    model: nn.Module
    rows: int
    loss: Callable[[list[SampleIndex]], Tensor]


Side = Callable[["ProDpoConfig"], Training]


@dataclass(frozen=True)
class Start:
    """A process before its first step: MiB without a model, CPU seconds of the setup."""

    idle: int
    seconds: float


@dataclass(frozen=True)
class Step:
    """One optimizer step: its loss, CPU seconds, and the process's peak MiB so far."""

    loss: float
    seconds: float
    peak: int
    start: Start


def ours(config: ProDpoConfig) -> Training:
    from torch.utils.data import default_collate

    from training.data.order import generator
    from training.pro_dpo import pro_dpo_training

    stage, rows, _ = pro_dpo_training(config)

    def loss(places: list[SampleIndex]) -> Tensor:
        generators = [generator(config.seed, place.position) for place in places]
        batch = default_collate([rows[place] for place in places])
        return stage.loss(stage.prepare_batch(batch, generators))[0]

    return Training(stage.trainable, len(rows), loss)


def diffusers_example(config: ProDpoConfig) -> Training:
    """A port of ``train_diffusion_dpo_sdxl.py`` with FLUX and a ControlNet instead of the UNet.

    Every step encodes winners, losers, conditions and prompts, then runs the policy and then the
    reference, each with the ControlNet. It uses the VAE's mode where the example samples.
    """
    import torch
    from diffusers import FluxPipeline
    from torch.nn import functional as F

    from colorflux_core.model.lora import add_lora
    from colorflux_core.photos.color import unit_range
    from training.data.order import generator
    from training.data.pictures import gray
    from training.models.flow_stage import with_noise
    from training.models.parts import Parts, feature_extractor
    from training.pro_dpo import FreshLosers, losers

    parts, processor = Parts(config), feature_extractor(config)
    vae, tower, redux, controlnet, transformer = (
        parts.frozen(name)
        for name in ("vae", "image_encoder", "image_embedder", "controlnet", "transformer")
    )
    torch.manual_seed(config.seed)
    add_lora(transformer, config.rank)
    winners = training_pictures(config, "pro_dpo")
    kept, fresh = losers(winners, config, "0"), FreshLosers(winners, config)
    height, width = (side // 2 for side in config.latent_size)
    img_ids = FluxPipeline._prepare_latent_image_ids(1, height, width, "cpu", torch.float32)

    def loss(places: list[SampleIndex]) -> Tensor:
        winner = torch.stack([winners[p.row].pixels() for p in places])
        loser = torch.stack([kept[p.row].pixels() if config.pairs else fresh(p) for p in places])
        condition = gray(loser)
        prompt_pixels = processor.preprocess(list(condition), return_tensors="pt")["pixel_values"]
        pixels = unit_range(torch.cat([winner, loser, condition])) * 2 - 1

        latents = torch.cat([vae.encode(few).latent_dist.mode() for few in pixels.split(VAE_BATCH)])
        latents = (latents - vae.config.shift_factor) * vae.config.scaling_factor
        latents = FluxPipeline._pack_latents(latents, *latents.shape)
        photos, condition = latents.split(2 * len(places))
        condition = condition.repeat(2, 1, 1)
        generators = [generator(config.seed, place.position) for place in places]
        drawn = with_noise({"winner": photos[: len(places)]}, "winner", generators, config)
        noise, t = drawn["noise"].repeat(2, 1, 1), drawn["t"].repeat(2)
        noisy = (1 - t[:, None, None]) * photos + t[:, None, None] * noise
        target = noise - photos

        with torch.no_grad():
            prompt = redux(tower(prompt_pixels).last_hidden_state).image_embeds
        prompt = F.pad(prompt, (0, 0, config.text_tokens, 0)).repeat(2, 1, 1)
        given = {
            "hidden_states": noisy,
            "timestep": t,
            "guidance": torch.full_like(t, config.guidance),
            "encoder_hidden_states": prompt,
            "pooled_projections": torch.zeros(len(t), transformer.config.pooled_projection_dim),
            "txt_ids": torch.zeros(prompt.shape[1], 3),
            "img_ids": img_ids,
            "return_dict": False,
        }

        def preference() -> Tensor:
            """Errors of the winners minus errors of the losers, (B,)."""
            double, single = controlnet(controlnet_cond=condition, **given)
            predicted = transformer(
                controlnet_block_samples=double, controlnet_single_block_samples=single, **given
            )[0]
            errors = F.mse_loss(predicted, target, reduction="none").mean((1, 2))
            winner_errors, loser_errors = errors.chunk(2)
            return winner_errors - loser_errors

        policy = preference()
        transformer.disable_adapters()
        with torch.no_grad():
            reference = preference()
        transformer.enable_adapters()
        return -F.logsigmoid(-0.5 * config.beta * (policy - reference)).mean()

    return Training(transformer, len(winners), loss)


def stepper(side: Side, config: ProDpoConfig) -> Callable[[int], tuple[float, float]]:
    """Run the optimizer step of this number and return its loss and CPU seconds."""
    import torch

    from training.data.order import row_order

    model, rows, loss_of = side(config)
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(
        parameters, lr=config.learning_rate, weight_decay=config.weight_decay
    )

    def step(number: int) -> tuple[float, float]:
        places = next(row_order(rows, config.batch_size, config.seed, number))
        began = time.process_time()
        loss = loss_of(places)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, config.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()
        return loss.item(), time.process_time() - began

    return step


@functools.cache
def quiet_stepper(side: Side, ground: Ground) -> tuple[Callable[[int], tuple[float, float]], Start]:
    """Set up a side once per process, on the CPU and without output."""
    import diffusers
    import transformers
    from accelerate import PartialState

    config = ground.config()
    for library in (diffusers, transformers):
        library.utils.logging.set_verbosity_error()
        library.utils.logging.disable_progress_bar()
    PartialState(cpu=True)
    idle, began = peak_memory(), time.process_time()
    step = stepper(side, config)
    return step, Start(idle, time.process_time() - began)


def take_step(side: Side, ground: Ground, number: int) -> Step:
    step, start = quiet_stepper(side, ground)
    loss, seconds = step(number)
    return Step(loss, seconds, peak_memory(), start)


def make_photos(folder: Path, side: int) -> None:
    """Generate images with soft patches of color."""
    import numpy as np
    from PIL import Image

    random = np.random.default_rng(0)
    for index in range(SYNTHETIC_PHOTOS):
        patches = Image.fromarray(random.integers(30, 225, (4, 4, 3), dtype=np.uint8))
        patches.resize((side, side), Image.Resampling.BICUBIC).save(folder / f"{index}.png")


def write_manifest(ground: Ground) -> None:
    files = sorted(f.name for f in ground.photos.iterdir() if f.suffix.lower() in PHOTO_KINDS)
    lines = [f'"{name}",{split}' for name in files for split in ("train", "validation")]
    ground.manifest.write_text("\n".join(["file,split", *lines]) + "\n", encoding="utf-8")


def compare(ground: Ground, steps: int) -> None:
    """Run and print both sides."""
    sides: dict[str, Side] = {"diffusers' example": diffusers_example, "ColorFLUX": ours}
    processes = [process() for _ in sides]
    rounds: list[list[Step]] = [
        [
            one.submit(take_step, side, ground, number).result()
            for one, side in zip(processes, sides.values(), strict=True)
        ]
        for number in range(steps)
    ]
    for one in processes:
        one.shutdown()
    timed, last = rounds[1:], rounds[-1]  # The first step is a warm-up.
    print(f"\nlosers {'fixed' if ground.pairs else 'faded in every step'}")
    print(f"{'':20}{'before':>8}{'seconds':>9}{'ratio':>7}{'MiB':>7}{'ratio':>7}{'work MiB':>10}")
    for i, name in enumerate(sides):
        seconds = statistics.median(runs[i].seconds for runs in timed)
        ratio = statistics.median(runs[i].seconds / runs[0].seconds for runs in timed)
        peak, start = last[i].peak, last[i].start
        print(
            f"{name:20}{start.seconds:>8.1f}{seconds:>9.2f}{ratio:>7.2f}"
            f"{peak:>7}{peak / last[0].peak:>7.2f}{peak - start.idle:>10}"
        )
    differences = [abs(one.loss - other.loss) for one, other in rounds]
    equal = next((i for i, difference in enumerate(differences) if difference > 1e-5), steps)
    print(
        f"losses from {rounds[0][0].loss:.4f} to {last[0].loss:.4f}, equal to 1e-5 for {equal} of "
        f"{steps} steps; largest difference {max(differences):.1e}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--photos", type=Path, help="folder of photos (synthetic ones)")
    parser.add_argument(
        "--batch-size", "--batch_size", type=int, default=8, help="pairs in a step (8)"
    )
    parser.add_argument("--steps", type=int, default=12, help="optimizer steps (12)")
    args = parser.parse_args()
    threads = os.environ.get("OMP_NUM_THREADS", os.cpu_count())
    print(f"nano, {args.batch_size} pairs, {threads} threads, median of {args.steps - 1} steps")
    for pairs in (1, 0):
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            ground = Ground(folder, args.photos or folder, args.batch_size, pairs)
            if args.photos is None:
                make_photos(folder, ground.canvas)
            write_manifest(ground)
            compare(ground, args.steps)


if __name__ == "__main__":
    main()
