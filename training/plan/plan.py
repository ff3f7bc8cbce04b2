"""``--plan``: the memory, disk space and steps of a run, without loading any weights.

Only the parts' config.json files are read. Weights, optimizer state and EMA follow from the shapes;
gradients and activations are counted by `footprint`, which runs the stage's loss on fake tensors.
The following is calculated, since running it needs a GPU or several processes:

- ``--offload``: the blocks' frozen weights are in CPU memory, except for the running block's and
  those of each model's next block.
- Several devices: with DDP, each holds everything, plus a second copy of the gradients for the
  all-reduce. FSDP2 (``--shard``) shards the trained model, gathers two of its blocks at a time, and
  keeps full gradients between micro-batches.
- ``--compile-blocks`` is ignored: compiled blocks need no more memory.
- `RESERVE` is an assumption, not a measurement.

Photos are encoded and decoded one by one, which needs less memory than a training step.
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
from .footprint import fake_models, forward_memory, step_memory

MakeStage = Callable[[Any, Parts], PlannedStage]

GIB = 2**30
RESERVE = GIB
"""Bytes for the CUDA context, cuBLAS's workspaces and the allocator's fragmentation."""

MOMENTS = {"adamw": 8.0, "adamw8bit": 2 + 2 * 4 / 256}
"""Bytes per weight of the optimizer's two moments; in 8 bits, 256 of them share a float32 scale."""

REMEDIES: tuple[tuple[str, Any], ...] = (
    ("micro_batch", 1),
    ("gradient_checkpointing", True),
    ("optimizer", "adamw8bit"),
    ("frozen", "fp8"),
    ("frozen", "nf4"),
    ("offload", True),
)
"""Settings that reduce a run's memory, cheapest first."""


@dataclass(frozen=True)
class WeightGroup:
    """The trained or the frozen weights of one part.

    Attributes:
        part: Name of the part, such as transformer.
        trained: Whether these weights are trained.
        storage: Their dtype, or fp8 or nf4.
        count: Number of weights.
        bytes: Their size.
    """

    part: str
    trained: bool
    storage: str
    count: int
    bytes: int


@dataclass(frozen=True)
class Plan:
    """What a run needs.

    Attributes:
        stage: The manifest's column for the stage.
        weights: The weights of all parts.
        phases: Bytes on each device by purpose, at the peak of each phase of the run.
        offloaded_bytes: Size of the frozen weights in CPU memory.
        checkpoint_bytes: Size of one checkpoint.
        row_bytes: Upper bound of the cache size per row.
    """

    stage: str
    weights: list[WeightGroup]
    phases: dict[str, dict[str, int]]
    offloaded_bytes: int
    checkpoint_bytes: int
    row_bytes: int

    @property
    def peak(self) -> int:
        """Bytes of memory that each device needs."""
        return max(sum(phase.values()) for phase in self.phases.values()) + RESERVE


def print_plan(config: PartsConfig, make_stage: MakeStage) -> None:
    """Print the plan. Raises ColorFluxError, which names flags to change, if it does not fit."""
    processes = config.devices or devices().num_processes
    plan = make_plan(config, make_stage, processes)
    memory = round(config.memory * GIB) or device_memory()
    if devices().is_main_process:
        print(*plan_table(plan, config, processes, memory), sep="\n")
        print(*run_length(plan, config))
    if memory and plan.peak > memory:
        raise ColorFluxError(
            f"this needs {plan.peak / GIB:.1f} GiB, the device has {memory / GIB:.1f}: "
            + suggest_changes(plan, config, make_stage, processes, memory)
        )


def make_plan(
    config: PartsConfig, make_stage: MakeStage, processes: int = 1, limit: float = math.inf
) -> Plan:
    """Plan training with ``config`` on ``processes`` devices.

    If weights and optimizer state alone exceed ``limit`` bytes, activations are not counted.

    Raises ColorFluxError if a part is missing or its storage format is not available.
    """
    # The models, on the meta device.
    micro_batch = config.micro_batch_size(processes)
    accumulating = config.batch_size > micro_batch * processes
    autocast = config.autocast
    checkpointing = config.gradient_checkpointing or config.offload
    parts = MetaParts(
        replace(config, offload=False, compile_blocks=False, gradient_checkpointing=checkpointing)
    )
    stage = make_stage(parts.config, parts)
    models = all_models(stage.trainable, parts)

    # Memory in use throughout the run.
    weights = [group for model in models for group in weight_groups(model, parts)]
    trained_count = sum(group.count for group in weights if group.trained)
    resident = {
        "frozen weights": sum(group.bytes for group in weights if not group.trained),
        "trained weights": sum(group.bytes for group in weights if group.trained),
        "optimizer": round(MOMENTS[config.optimizer] * trained_count),
        "moving average": 4 * trained_count if config.ema_decay else 0,
    }
    checkpoint = sum(resident.values()) - resident["frozen weights"]
    offloaded, copied = offload_bytes(models) if config.offload else (0, 0)
    resident["frozen weights"] += copied - offloaded
    sharded = config.shard and processes > 1
    if sharded:
        resident = sharded_bytes(resident, stage.trainable, processes)
    elif processes > 1:
        resident["gradients to send"] = resident["trained weights"]

    # The peaks of a training step and of drawing samples.
    batch = stage.blank(micro_batch)
    draws_samples = {*FLUX_MODELS} <= {type(model) for model in models}
    encoders = [parts.frozen(name) for name in ("vae", "image_encoder") if draws_samples]
    phases = {"training": resident}
    if sum(resident.values()) <= limit:
        with fake_models(models) as fakes:
            gradients, activations = step_memory(
                fakes, lambda: copied_loss(stage, batch), autocast, accumulating
            )
            if sharded and not accumulating:
                gradients //= processes
            phases["training"] = resident | {"gradients": gradients, "activations": activations}
            if draws_samples:
                tokens = batch[stage.columns.tokens[0]].shape[1]
                drawing = forward_memory(
                    fakes, lambda: evaluate_velocity(models, tokens, config), autocast
                )
                phases["drawing samples"] = resident | {
                    "VAE and vision tower": sum(
                        total_bytes(model.parameters()) for model in encoders
                    ),
                    "activations": drawing,
                }

    # The cache.
    element_size = 4 if config.precision == "no" else 2
    cached = (*stage.columns.latents, *stage.columns.tokens)
    row_bytes = sum(element_size * batch[name][0].numel() for name in cached)
    return Plan(stage.name, weights, phases, offloaded, checkpoint, row_bytes)


class MetaParts(Parts):
    """Parts on the meta device that record the loaded models and their numbers of weights."""

    def __init__(self, config: PartsConfig) -> None:
        super().__init__(config, weights=False)
        self.counts: dict[nn.Module, int] = {}

    def load(self, name: str, path: Path | None = None, dtype: torch.dtype | None = None) -> Any:
        model = super().load(name, path, dtype).requires_grad_(False)
        self.counts[model] = sum(weight.numel() for weight in model.parameters())
        return model


def all_models(trainable: nn.Module, parts: MetaParts) -> list[nn.Module]:
    """All models that a stage keeps in memory: the loaded ones and the trained ones."""
    trained = trainable.values() if isinstance(trainable, nn.ModuleDict) else [trainable]
    return list(dict.fromkeys([*parts.counts, *trained]))


def weight_groups(model: nn.Module, parts: MetaParts) -> Iterator[WeightGroup]:
    """A part's frozen weights, then its trained ones; groups without weights are omitted."""
    names = {model_class: name for name, model_class in DIFFUSERS_MODELS.items()}
    part = names.get(type(model), "image_encoder")
    for trained in (False, True):
        weights = [weight for weight in model.parameters() if weight.requires_grad == trained]
        if weights:
            packed = any(weight.dtype == torch.uint8 for weight in weights)
            storage = parts.config.frozen if packed else str(weights[0].dtype).partition(".")[2]
            count = sum(w.numel() for w in weights) if trained else parts.counts[model]
            yield WeightGroup(part, trained, storage, count, total_bytes(weights))


def total_bytes(weights: Iterable[Tensor]) -> int:
    return sum(weight.nbytes for weight in weights)


def copied_loss(stage: PlannedStage, batch: Batch) -> Tensor:
    """The loss on a copy of the batch, so that the batch's memory is counted too."""
    return stage.loss({name: column.clone() for name, column in batch.items()})[0]


def evaluate_velocity(models: list[Any], tokens: int, config: PartsConfig) -> None:
    """Evaluate the velocity once, with all samples in one batch, as when samples are drawn."""
    by_class = {type(model): model for model in models}
    transformer, controlnet = (by_class[model_class] for model_class in FLUX_MODELS)
    height, width = config.latent_size
    x_t, t = torch.zeros(SAMPLES, height * width // 4, 64), torch.zeros(SAMPLES)
    length = config.text_tokens + tokens
    prompt = torch.zeros(SAMPLES, length, transformer.config.joint_attention_dim)
    conditions = Conditions(prompt, config.latent_size, config.guidance)
    residuals = control_residuals(controlnet, x_t, t, x_t, conditions)
    predict_velocity(transformer, x_t, t, conditions, residuals)


def offload_bytes(models: list[nn.Module]) -> tuple[int, int]:
    """Bytes of frozen weights (in CPU memory, of their copies on the device)."""
    frozen = [
        [
            total_bytes(w for w in block.parameters() if not w.requires_grad)
            for block in blocks(model)
        ]
        for model in models
        if isinstance(model, FLUX_MODELS)
    ]
    largest = [max(sizes) for sizes in frozen]
    return sum(map(sum, frozen)), sum(largest) + max(largest, default=0)


def sharded_bytes(resident: dict[str, int], trainable: nn.Module, processes: int) -> dict[str, int]:
    """``resident`` on each device if FSDP2 shards the trained model."""
    frozen = total_bytes(w for w in trainable.parameters() if not w.requires_grad)
    share = {name: bytes // processes for name, bytes in resident.items()}
    share["frozen weights"] = resident["frozen weights"] - frozen + frozen // processes
    # Two gathered blocks, each with weights, full gradients and a buffer for the reduce-scatter.
    share["gathered blocks"] = max(
        sum(w.nbytes * (4 if w.requires_grad else 2) for w in block.parameters())
        for block in blocks(trainable) or [trainable]
    )
    return share


def device_memory() -> int:
    """Bytes of this machine's GPU memory; 0 without a GPU."""
    if not torch.cuda.is_available():
        return 0
    return torch.cuda.get_device_properties(devices().device).total_memory


def plan_table(plan: Plan, config: PartsConfig, processes: int, memory: int) -> Iterator[str]:
    """The plan as a table."""
    # Weights by part.
    yield f"{'weights':28}{'number':>16}  {'storage':10}{'GiB':>10}"
    for group in plan.weights:
        part = f"{group.part}, {'trained' if group.trained else 'frozen'}"
        yield f"{part:28}{group.count:>16,}  {group.storage:10}{group.bytes / GIB:>10.2f}"
    trainable = sum(group.count for group in plan.weights if group.trained)
    frozen = sum(group.count for group in plan.weights if not group.trained)
    yield f"trainable {trainable:,}, frozen {frozen:,}"

    # Device memory by phase.
    where = f"on each of {processes} devices" if processes > 1 else "on the device"
    yield f"\n{where:56}{'GiB':>10}"
    for phase, sizes in plan.phases.items():
        yield f"{phase:56}{sum(sizes.values()) / GIB:>10.2f}"
        for purpose, bytes in sizes.items():
            if bytes:
                yield f"  {purpose:54}{bytes / GIB:>10.2f}"
    of = f" of {memory / GIB:.1f}" if memory else ""
    yield f"{f'peak, including {RESERVE / GIB:g} in reserve':56}{plan.peak / GIB:>10.2f}{of}"

    # CPU memory and disk space.
    if plan.offloaded_bytes:
        yield f"{'frozen weights offloaded to CPU memory':56}{plan.offloaded_bytes / GIB:>10.2f}"
    checkpoints = f"on disk, each of {config.keep_checkpoints} checkpoints"
    yield f"{checkpoints:56}{plan.checkpoint_bytes / GIB:>10.2f}"


def run_length(plan: Plan, config: PartsConfig) -> Iterator[str]:
    """Upper bounds of rows, steps and cache size; the stage may filter out more photos."""
    try:
        photos = manifest_rows(config.manifest)
    except ColorFluxError:
        yield f"rows, steps and cache are unknown: there is no --manifest {config.manifest}"
        return
    usable = sum(row["split"] == "train" and row.get(plan.stage, "yes") == "yes" for row in photos)
    rows = usable * config.views * (getattr(config, "pairs", 1) or 1)
    yield f"at most {rows:,} rows, {config.steps_for(rows):,} steps of {config.batch_size} rows,"
    yield f"{rows * plan.row_bytes / GIB:.1f} GiB of cache"


def suggest_changes(
    plan: Plan, config: PartsConfig, make_stage: MakeStage, processes: int, memory: int
) -> str:
    """Flags that make the run fit, found by planning it again with one after another of `REMEDIES`.

    Returns the end of an error message.
    """

    def peak(changes: dict[str, Any]) -> float:
        try:
            return make_plan(replace(config, **changes), make_stage, processes, memory).peak
        except ColorFluxError:  # Some storage formats are not available on every machine.
            return math.inf

    # Add remedies until the run fits.
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

    # Drop those that later, stronger ones made unnecessary.
    for name in [*changes][-2::-1] if least <= memory else []:
        without = {other: value for other, value in changes.items() if other != name}
        without_it = peak(without)
        if without_it <= memory:
            changes, least = without, without_it
    flags = " ".join(f"{flag_of(name)} {str(value).lower()}" for name, value in changes.items())
    if least <= memory:
        return f"use {flags}, which needs {least / GIB:.1f}"
    with_all = f"with {flags} it still needs {least / GIB:.1f} or more; " if flags else ""
    return with_all + "use a larger device, or several and --shard true"
