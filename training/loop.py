"""The one loop of all stages.

A stage says what is drawn for a batch (``draw``), what its loss is (``loss``, a pure function of
the drawn batch), what a sample sheet shows and what artifact it leaves. The loop does the rest.
Whatever is random in step k comes from a generator seeded with (seed, k) and is drawn for the whole
batch before it is cut into micro batches: so accumulation and resuming change nothing.
"""

from __future__ import annotations

import json
import logging
import math
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import torch
from accelerate import Accelerator
from diffusers.optimization import get_scheduler
from diffusers.training_utils import EMAModel
from torch import Tensor, nn
from tqdm import tqdm

from colorflux_core.errors import ColorFluxError

from .config import LoopConfig
from .data import Rows

logger = logging.getLogger(__name__)
Batch = dict[str, Tensor]
CHECKPOINT = "checkpoint.pt"


class Stage(Protocol):
    trainable: nn.Module

    def draw(self, batch: Batch, generator: torch.Generator) -> Batch:
        """The batch with everything random added: noise, timesteps, masks."""

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """The mean loss over the batch, and the metrics to log beside it."""

    def sample(self, path: Path) -> None:
        """Draw a sample sheet to ``path`` with the present weights."""

    def save(self, folder: Path) -> None:
        """Write the stage's artifact."""


def total_steps(config: LoopConfig, rows: int) -> int:
    return config.steps or max(1, math.ceil(config.epochs * rows / config.batch_size))


def row_order(rows: int, batch_size: int, seed: int, first_step: int) -> Iterator[Tensor]:
    """Row indices of each batch from ``first_step`` on, shuffled anew for every pass."""
    position = first_step * batch_size

    def shuffled(epoch: int) -> Tensor:
        return torch.randperm(rows, generator=step_generator(seed, -1 - epoch))

    while True:
        wanted = torch.arange(position, position + batch_size)
        epochs = {epoch: shuffled(epoch) for epoch in (wanted // rows).unique().tolist()}
        yield torch.stack([epochs[p // rows][p % rows] for p in wanted.tolist()])
        position += batch_size


def step_generator(seed: int, step: int) -> torch.Generator:
    """The generator of everything random in one step (or, negative, in one pass over the rows)."""
    return torch.Generator().manual_seed((seed * 1_000_003 + step) % 2**63)


def train(stage: Stage, rows: Rows, config: LoopConfig) -> None:
    """Train ``stage.trainable`` on ``rows`` and leave the artifact in ``config.output``.

    Raises ColorFluxError when the settings do not fit together, when the output already holds a run
    that ``--resume`` was not given for, and when the loss stops being finite.
    """
    micro_batch = config.micro_batch or config.batch_size
    if min(config.batch_size, micro_batch) < 1 or config.batch_size % micro_batch:
        raise ColorFluxError("--batch_size must be a positive multiple of --micro_batch")
    if config.checkpoint_every < 1:
        raise ColorFluxError("--checkpoint_every must be at least 1")
    checkpoint = config.output / CHECKPOINT
    if checkpoint.exists() and not config.resume:
        raise ColorFluxError(f"{config.output} holds a run: give --resume or another --output")
    config.output.mkdir(parents=True, exist_ok=True)

    steps = total_steps(config, len(rows))
    accelerator = Accelerator(
        mixed_precision=config.precision,
        gradient_accumulation_steps=config.batch_size // micro_batch,
    )
    parameters = [p for p in stage.trainable.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(
        parameters, lr=config.learning_rate, weight_decay=config.weight_decay
    )
    schedule = get_scheduler(
        config.schedule,
        optimizer,
        num_warmup_steps=config.warmup_steps,
        num_training_steps=steps,
    )
    stage.trainable, optimizer = accelerator.prepare(stage.trainable, optimizer)
    ema = EMAModel(parameters, decay=config.ema_decay) if config.ema_decay else None
    first_step = restore(checkpoint, stage, optimizer, schedule, ema) if checkpoint.exists() else 0

    metrics_file = config.output / "metrics.jsonl"
    forget_metrics(metrics_file, first_step)
    progress = tqdm(total=steps, initial=first_step, desc=config.output.name, unit="step")
    order = row_order(len(rows), config.batch_size, config.seed, first_step)
    for step in range(first_step, steps):
        began = time.perf_counter()
        batch = stage.draw(rows.batch(next(order)), step_generator(config.seed, step))
        total: dict[str, float] = {}
        for start in range(0, config.batch_size, micro_batch):
            micro = {
                name: column[start : start + micro_batch].to(accelerator.device)
                for name, column in batch.items()
            }
            with accelerator.accumulate(stage.trainable):
                with accelerator.autocast():
                    loss, metrics = stage.loss(micro)
                if not torch.isfinite(loss):
                    raise ColorFluxError(
                        f"the loss is {loss.item()} at step {step}:"
                        " start again with a lower --learning_rate"
                    )
                accelerator.backward(loss)
                if accelerator.sync_gradients:
                    norm = accelerator.clip_grad_norm_(parameters, config.max_grad_norm)
                    total["grad_norm"] = float(norm)
                optimizer.step()
                optimizer.zero_grad()
            share = micro_batch / config.batch_size
            for name, value in {"loss": loss, **metrics}.items():
                total[name] = total.get(name, 0.0) + value.item() * share
        schedule.step()
        if ema:
            ema.step(parameters)

        total["images_per_s"] = config.batch_size / (time.perf_counter() - began)
        log(metrics_file, {"step": step, **total})
        progress.update()
        progress.set_postfix_str(
            f"loss {total['loss']:.4f}, {total['images_per_s']:.1f} images/s", refresh=False
        )
        done = step + 1
        if done % config.checkpoint_every == 0 or done == steps:
            save_checkpoint(checkpoint, stage, optimizer, schedule, ema, done)
        if config.sample_every and done % config.sample_every == 0 and done < steps:
            finish(stage, ema, parameters, config.output / f"sample-{done:06d}.jpg")
    progress.close()
    finish(stage, ema, parameters, config.output / "sample.jpg", config.artifact or config.output)


def finish(
    stage: Stage,
    ema: EMAModel | None,
    parameters: list[nn.Parameter],
    sheet: Path,
    artifact: Path | None = None,
) -> None:
    """Draw a sample sheet, and write the artifact if asked, with the averaged weights if any."""
    if ema:
        ema.store(parameters)
        ema.copy_to(parameters)
    with torch.no_grad():
        stage.sample(sheet)
    if artifact:
        stage.save(artifact)
    if ema:
        ema.restore(parameters)


def log(path: Path, metrics: dict[str, float]) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps({name: round(value, 6) for name, value in metrics.items()}) + "\n")


def forget_metrics(path: Path, first_step: int) -> None:
    """Drop what a run that was stopped has logged after its last checkpoint."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    kept = [line for line in lines if json.loads(line)["step"] < first_step]
    path.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")


def save_checkpoint(
    path: Path,
    stage: Stage,
    optimizer: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LRScheduler,
    ema: EMAModel | None,
    step: int,
) -> None:
    """Write the whole state beside ``path``, then put it in place: a kill leaves the old one."""
    trainable = {n: p for n, p in stage.trainable.named_parameters() if p.requires_grad}
    state = {
        "step": step,
        "trainable": trainable,
        "optimizer": optimizer.state_dict(),
        "schedule": schedule.state_dict(),
        "ema": ema.state_dict() if ema else None,
    }
    unfinished = path.with_suffix(".part")
    with unfinished.open("wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())
    unfinished.replace(path)


def restore(
    path: Path,
    stage: Stage,
    optimizer: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LRScheduler,
    ema: EMAModel | None,
) -> int:
    """Load the state that ``save_checkpoint`` wrote; returns the steps it has behind it."""
    state = torch.load(path, weights_only=True, map_location="cpu")
    with torch.no_grad():
        for name, parameter in stage.trainable.named_parameters():
            if parameter.requires_grad:
                parameter.copy_(state["trainable"][name])
    optimizer.load_state_dict(state["optimizer"])
    schedule.load_state_dict(state["schedule"])
    if ema:
        ema.load_state_dict(state["ema"])
        ema.to(next(stage.trainable.parameters()).device)
    logger.info("resumed %s at step %d", path, state["step"])
    return int(state["step"])
