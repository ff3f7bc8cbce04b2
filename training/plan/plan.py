"""``--plan``: what a run would load, hold in memory and leave on disk, before anything is read.

Only the parts' config.json files are read. Weights, optimizer and average are counted from their
shapes; gradients and activations by `footprint`, which runs the stage's loss on fake tensors.
Calculated on top, since running it takes a GPU or several processes:

- ``--offload``: frozen weights of blocks are on the CPU, except for the running block's and those
  of the next block of each model.
- Several devices: with DDP each holds everything, and a second copy of the gradients to send. FSDP2
  (``--shard``) divides the trained model, gathers two of its blocks at a time, and keeps full
  gradients between micro-batches.
- ``--compile-blocks`` is ignored: compiled blocks keep no more.
- `RESERVE` is assumed, not measured.

Photos are encoded and decoded one by one, which takes less than a step.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from colorflux_core.bundles.components import DIFFUSERS_MODELS
from colorflux_core.cli.flags import flag_of
from colorflux_core.errors import ColorFluxError
from colorflux_core.model.velocity import Conditions, control_residuals, predict_velocity

from ..data.manifest import manifest_rows
from ..data.pictures import SAMPLES
from ..data.rows import Batch
from ..models.blocks import blocks
from ..models.parallel import devices
from ..models.parts import FLUX_MODELS, Parts, PartsConfig
from ..stage import PlannedStage
from .footprint import counted_call, counted_step, fake_models

MakeStage = Callable[[Any, Parts], PlannedStage]

GIB = 2**30
RESERVE = GIB
"""The CUDA context, cuBLAS's workspaces, and what lies unused between the allocator's blocks."""

MOMENTS = {"adamw": 8.0, "adamw8bit": 2 + 2 * 4 / 256}
"""Bytes of the optimizer's two states for each weight; in 8 bits, 256 share a float32 scale."""

REMEDIES: tuple[tuple[str, Any], ...] = (
    ("micro_batch", 1),
    ("gradient_checkpointing", True),
    ("optimizer", "adamw8bit"),
    ("frozen", "fp8"),
    ("frozen", "nf4"),
    ("offload", True),
)
"""What makes a run smaller; the first ones cost the least."""


@dataclass(frozen=True)
class Weights:
    """Those of one part that learn, or those that do not."""

    part: str
    learn: bool
    held: str
    number: int
    bytes: int


@dataclass(frozen=True)
class Plan:
    stage: str
    """The manifest's column for the stage."""
    weights: list[Weights]
    phases: dict[str, dict[str, int]]
    """Bytes on each device, by phase of the run: what is there when the phase holds most."""
    waiting: int
    """Bytes of frozen weights in the CPU's memory."""
    checkpoint: int
    """Bytes of one checkpoint."""
    row: int
    """Bytes at most that are cached for each row."""

    @property
    def peak(self) -> int:
        """Bytes that each device must have."""
        return max(sum(phase.values()) for phase in self.phases.values()) + RESERVE


def print_plan(config: PartsConfig, make_stage: MakeStage) -> None:
    """Raises ColorFluxError, which says what to change, when the device is too small."""
    processes = config.devices or devices().num_processes
    plan = make_plan(config, make_stage, processes)
    memory = round(config.memory * GIB) or device_memory()
    if devices().is_main_process:
        print(*described(plan, config, processes, memory), sep="\n")
        print(*length(plan, config))
    if memory and plan.peak > memory:
        raise ColorFluxError(
            f"this takes {plan.peak / GIB:.1f} GiB, the device has {memory / GIB:.1f}: "
            + advice(plan, config, make_stage, processes, memory)
        )


def make_plan(
    config: PartsConfig, make_stage: MakeStage, processes: int = 1, limit: float = math.inf
) -> Plan:
    """What training with ``config`` takes on each of ``processes`` devices.

    Where weights and optimizer alone are above ``limit`` bytes, the rest is not counted.

    Raises ColorFluxError when a part is missing, or cannot be held as ``config`` says.
    """
    micro_batch = config.micro_batch_size(processes)
    accumulating = config.batch_size > micro_batch * processes
    autocast = config.autocast
    checkpointing = config.gradient_checkpointing or config.offload
    parts = Skeletons(
        replace(config, offload=False, compile_blocks=False, gradient_checkpointing=checkpointing)
    )
    stage = make_stage(parts.config, parts)
    models = models_of(stage.trainable, parts)
    weights = [kind for model in models for kind in weights_of(model, parts)]
    learning = sum(kind.number for kind in weights if kind.learn)
    held = {
        "frozen weights": sum(kind.bytes for kind in weights if not kind.learn),
        "trained weights": sum(kind.bytes for kind in weights if kind.learn),
        "optimizer": round(MOMENTS[config.optimizer] * learning),
        "moving average": 4 * learning if config.ema_decay else 0,
    }
    checkpoint = sum(held.values()) - held["frozen weights"]
    waiting, visiting = offloaded(models) if config.offload else (0, 0)
    held["frozen weights"] += visiting - waiting

    sharded = config.shard and processes > 1
    if sharded:
        held = shared(held, stage.trainable, processes)
    elif processes > 1:
        held["gradients to send"] = held["trained weights"]

    batch = stage.blank(micro_batch)
    draws = {*FLUX_MODELS} <= {type(model) for model in models}
    encoders = [parts.frozen(name) for name in ("vae", "image_encoder") if draws]
    phases = {"training": held}
    if sum(held.values()) <= limit:
        with fake_models(models) as fakes:
            gradients, activations = counted_step(
                fakes, lambda: copied_loss(stage, batch), autocast, accumulating
            )
            if sharded and not accumulating:
                gradients //= processes
            phases["training"] = held | {"gradients": gradients, "activations": activations}
            if draws:
                tokens = batch[stage.columns.tokens[0]].shape[1]
                drawing = counted_call(fakes, lambda: evaluate(models, tokens, config), autocast)
                phases["drawing samples"] = held | {
                    "VAE and vision tower": sum(size(model.parameters()) for model in encoders),
                    "activations": drawing,
                }
    element_size = 4 if config.precision == "no" else 2
    cached = (*stage.columns.latents, *stage.columns.tokens)
    row = sum(element_size * batch[name][0].numel() for name in cached)
    return Plan(stage.name, weights, phases, waiting, checkpoint, row)


class Skeletons(Parts):
    """Parts without weights that remember the models they gave and their numbers of weights."""

    def __init__(self, config: PartsConfig) -> None:
        super().__init__(config, weights=False)
        self.numbers: dict[nn.Module, int] = {}

    def load(self, name: str, path: Path | None = None, dtype: torch.dtype | None = None) -> Any:
        model = super().load(name, path, dtype).requires_grad_(False)
        self.numbers[model] = sum(weight.numel() for weight in model.parameters())
        return model


def models_of(trainable: nn.Module, parts: Skeletons) -> list[nn.Module]:
    """All models that a stage keeps: those it loaded, and what it made of them."""
    made = trainable.values() if isinstance(trainable, nn.ModuleDict) else [trainable]
    return list(dict.fromkeys([*parts.numbers, *made]))


def weights_of(model: nn.Module, parts: Skeletons) -> Iterator[Weights]:
    """A part's frozen weights and its trained ones, where it has any."""
    names = {kind: name for name, kind in DIFFUSERS_MODELS.items()}
    part = names.get(type(model), "image_encoder")
    for learn in (False, True):
        weights = [weight for weight in model.parameters() if weight.requires_grad == learn]
        if weights:
            packed = any(weight.dtype == torch.uint8 for weight in weights)
            held = parts.config.frozen if packed else str(weights[0].dtype).partition(".")[2]
            number = sum(w.numel() for w in weights) if learn else parts.numbers[model]
            yield Weights(part, learn, held, number, size(weights))


def size(weights: Iterable[Tensor]) -> int:
    return sum(weight.nbytes for weight in weights)


def copied_loss(stage: PlannedStage, batch: Batch) -> Tensor:
    """The loss of a copy of the batch, so that its memory counts."""
    return stage.loss({name: column.clone() for name, column in batch.items()})[0]


def evaluate(models: list[Any], tokens: int, config: PartsConfig) -> None:
    """One velocity evaluation as in drawing samples, with all samples in one batch."""
    by_kind = {type(model): model for model in models}
    transformer, controlnet = (by_kind[kind] for kind in FLUX_MODELS)
    height, width = config.latent_size
    x_t, t = torch.zeros(SAMPLES, height * width // 4, 64), torch.zeros(SAMPLES)
    length = config.text_tokens + tokens
    prompt = torch.zeros(SAMPLES, length, transformer.config.joint_attention_dim)
    conditions = Conditions(prompt, config.latent_size, config.guidance)
    residuals = control_residuals(controlnet, x_t, t, x_t, conditions)
    predict_velocity(transformer, x_t, t, conditions, residuals)


def offloaded(models: list[nn.Module]) -> tuple[int, int]:
    """(bytes of frozen weights that wait in the CPU's memory, bytes of those that visit)."""
    frozen = [
        [size(w for w in block.parameters() if not w.requires_grad) for block in blocks(model)]
        for model in models
        if isinstance(model, FLUX_MODELS)
    ]
    largest = [max(sizes) for sizes in frozen]
    return sum(map(sum, frozen)), sum(largest) + max(largest, default=0)


def shared(held: dict[str, int], trainable: nn.Module, processes: int) -> dict[str, int]:
    """``held`` where each process has its share of the trained model."""
    frozen = size(w for w in trainable.parameters() if not w.requires_grad)
    share = {name: bytes // processes for name, bytes in held.items()}
    share["frozen weights"] = held["frozen weights"] - frozen + frozen // processes
    # Of two blocks the weights, and their gradients whole and as they are sent.
    share["gathered blocks"] = max(
        sum(w.nbytes * (4 if w.requires_grad else 2) for w in block.parameters())
        for block in blocks(trainable) or [trainable]
    )
    return share


def device_memory() -> int:
    """Bytes of this machine's GPU; 0 without one."""
    if not torch.cuda.is_available():
        return 0
    return torch.cuda.get_device_properties(devices().device).total_memory


def described(plan: Plan, config: PartsConfig, processes: int, memory: int) -> Iterator[str]:
    """The plan as a table."""
    yield f"{'weights':28}{'number':>16}  {'held as':10}{'GiB':>10}"
    for kind in plan.weights:
        part = f"{kind.part}, {'learns' if kind.learn else 'frozen'}"
        yield f"{part:28}{kind.number:>16,}  {kind.held:10}{kind.bytes / GIB:>10.2f}"
    trainable = sum(kind.number for kind in plan.weights if kind.learn)
    frozen = sum(kind.number for kind in plan.weights if not kind.learn)
    yield f"trainable {trainable:,}, frozen {frozen:,}"
    where = f"on each of {processes} devices" if processes > 1 else "on the device"
    yield f"\n{where:56}{'GiB':>10}"
    for phase, sizes in plan.phases.items():
        yield f"{phase:56}{sum(sizes.values()) / GIB:>10.2f}"
        yield from (f"  {what:54}{bytes / GIB:>10.2f}" for what, bytes in sizes.items() if bytes)
    of = f" of {memory / GIB:.1f}" if memory else ""
    yield f"{f'peak, {RESERVE / GIB:g} in reserve':56}{plan.peak / GIB:>10.2f}{of}"
    if plan.waiting:
        yield f"{'frozen weights that wait in the CPU memory':56}{plan.waiting / GIB:>10.2f}"
    checkpoints = f"on disk, each of {config.keep_checkpoints} checkpoints"
    yield f"{checkpoints:56}{plan.checkpoint / GIB:>10.2f}"


def length(plan: Plan, config: PartsConfig) -> Iterator[str]:
    """Rows, steps and cache size, given a manifest; the stage may leave out some of its photos."""
    try:
        photos = manifest_rows(config.manifest)
    except ColorFluxError:
        yield f"rows, steps and cache are not known: there is no --manifest {config.manifest}"
        return
    chosen = sum(row["split"] == "train" and row.get(plan.stage, "yes") == "yes" for row in photos)
    rows = chosen * config.views * (getattr(config, "pairs", 1) or 1)
    yield f"at most {rows:,} rows, {config.steps_for(rows):,} steps of {config.batch_size} rows,"
    yield f"{rows * plan.row / GIB:.1f} GiB of cache"


def advice(
    plan: Plan, config: PartsConfig, make_stage: MakeStage, processes: int, memory: int
) -> str:
    """What to change, best first: found by planning the run again with more and more `REMEDIES`."""

    def peak(changes: dict[str, Any]) -> float:
        try:
            return make_plan(replace(config, **changes), make_stage, processes, memory).peak
        except ColorFluxError:  # Not every type of frozen weights is for every machine.
            return math.inf

    changes: dict[str, Any] = {}
    least: float = plan.peak
    for name, value in REMEDIES:
        if getattr(config, name) == value:
            continue
        with_it = peak(changes | {name: value})
        if with_it <= least:
            changes, least = changes | {name: value}, with_it
        if least <= memory:
            break
    for name in [*changes][-2::-1] if least <= memory else []:
        without = {other: value for other, value in changes.items() if other != name}
        without_it = peak(without)
        if without_it <= memory:  # Others, that came later, made it needless.
            changes, least = without, without_it
    flags = " ".join(f"{flag_of(name)} {str(value).lower()}" for name, value in changes.items())
    if least <= memory:
        return f"give {flags}, which takes {least / GIB:.1f}"
    with_all = f"with {flags} it still takes {least / GIB:.1f} or more; " if flags else ""
    return with_all + "it needs a larger device, or more of them and --shard true"
