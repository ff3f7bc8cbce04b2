"""The one loop of all stages.

A stage says what is drawn for a batch (``draw``), what its loss is (``loss``, a pure function of
the drawn batch), what a sample sheet shows and what artifact it leaves. The loop does the rest, on
one device or, by ``accelerate launch``, on many.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import NamedTuple, Protocol, TypeVar

import torch
from accelerate import Accelerator
from accelerate.tracking import get_available_trackers
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from tqdm import tqdm

from colorflux_core.errors import ColorFluxError

from ..config import LoopConfig
from ..data.order import MicroBatches, generator
from ..data.rows import Batch, Picture, Rows, load
from ..models.parallel import devices, parallel, whole
from ..models.parts import Parts, PartsConfig
from ..plan.plan import print_plan
from .checkpoint import checkpoints, load_checkpoint, save_checkpoint
from .metrics import Means, forget_lines, log_line, peak_memory
from .sheets import Sheet, forget_sheets, grow_sheet
from .state import RunState
from .stopping import asked_to_stop

logger = logging.getLogger(__name__)
Config = TypeVar("Config", bound=PartsConfig)

Loss = tuple[Tensor, dict[str, Tensor]]
"""The mean loss over the batch, and metrics to log: of each row (B,), or their mean."""


class Stage(Protocol):
    @property
    def trainable(self) -> nn.Module: ...

    def draw(self, batch: Batch, generators: list[torch.Generator]) -> Batch:
        """The batch with everything random added, by the generator of each row."""

    def loss(self, batch: Batch) -> Loss: ...

    def sample(self, samples: list[Picture]) -> Sheet | None:
        """What the present weights make of the samples, if they can be drawn."""

    def save(self, folder: Path) -> None:
        """Write the stage's artifact. All devices take part; one writes."""


class PlannedStage(Stage, Protocol):
    def blank(self, rows: int) -> Batch:
        """What the loss would be given, in zeros."""


class Training(NamedTuple):
    """A stage, what it trains on, and the pictures that its sample sheets show."""

    stage: Stage
    rows: Rows
    samples: list[Picture]


def start(
    config: Config,
    stage: Callable[[Config, Parts], PlannedStage],
    prepare: Callable[[Config], Training],
) -> None:
    """What a stage's command does: print the plan, or train."""
    if config.plan:
        print_plan(config, stage)
    else:
        train(prepare(config), config)
        devices().destroy_process_group()


def train(training: Training, config: LoopConfig) -> None:
    """Train ``stage.trainable`` and leave the artifact in ``config.output``.

    Raises ColorFluxError when the settings do not fit together, when the output already holds a run
    that ``--resume`` was not given for or that had other settings, when the loss stops being finite
    or explodes, and when a checkpoint cannot be written. Raises KeyboardInterrupt when it was asked
    to stop, after saving a checkpoint.
    """
    stage, rows, samples = training
    accelerator = make_accelerator(config)
    micro_batch = micro_batch_size(config, accelerator.num_processes)
    if checkpoints(config.output) and not config.resume:
        raise ColorFluxError(f"{config.output} holds a run: give --resume or another --output")
    try:
        config.output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ColorFluxError(
            f"--output {config.output} cannot be made: {error.strerror}"
        ) from error

    steps = config.steps_for(len(rows))
    module = parallel(stage, accelerator, config.shard)
    run = RunState(stage.trainable, rows, config, steps, accelerator)
    saved = load_checkpoint(config.output)
    first_step = run.restore(saved) if saved else 0
    log = Log(config, accelerator, first_step)

    def save(step: int) -> None:
        state = run.state(step)
        if accelerator.is_main_process:
            save_checkpoint(config.output, step, state, config.keep_checkpoints)
        accelerator.wait_for_everyone()

    micro_batches = load(
        rows,
        config.workers,
        batch_sampler=MicroBatches(
            len(rows),
            config.batch_size,
            micro_batch,
            config.seed,
            range(first_step, steps),
            accelerator.process_index,
            accelerator.num_processes,
        ),
    )
    parts = config.batch_size // micro_batch // accelerator.num_processes
    with asked_to_stop() as request, log.progress(first_step, steps) as progress:
        for step in range(first_step, steps):
            began = time.perf_counter()
            means, seen = Means(), []
            for part in range(parts):
                micro = {k: v.to(accelerator.device) for k, v in next(micro_batches).items()}
                seen += micro["row"].tolist()
                generators = [generator(config.seed, place) for place in micro["place"].tolist()]
                batch = stage.draw(micro, generators)
                with synchronized(accelerator, module, last=part == parts - 1):
                    with accelerator.autocast():
                        loss, metrics = module(batch)
                    accelerator.backward(loss / parts)
                means.add("loss", loss, micro_batch)
                for name, value in metrics.items():
                    means.add(name, value, micro_batch)
                if "flow_loss" in metrics:
                    means.add_by_timestep("flow_loss", metrics["flow_loss"], batch["t"])
            norm = accelerator.clip_grad_norm_(run.parameters, config.max_grad_norm or math.inf)
            asked = torch.tensor(float(request.asked), device=accelerator.device)
            means.add("stop", asked, 1)
            logged = means.over_devices(accelerator)
            logged["grad_norm"] = whole(norm).item()
            stop = logged.pop("stop") > 0
            run.require_sound(logged, step, [rows.photos[row] for row in seen])
            logged["learning_rate"] = run.schedule.get_last_lr()[0]
            run.step()

            logged["images_per_s"] = config.batch_size / (time.perf_counter() - began)
            logged["peak_memory"] = peak_memory(accelerator.device)
            log(step, logged)
            progress.update()
            progress.set_postfix_str(
                f"loss {logged['loss']:.4f}, {logged['images_per_s']:.1f} images/s", refresh=False
            )
            done = step + 1
            if config.sample_every and done % config.sample_every == 0 and done < steps:
                with run.averaged():
                    draw_samples(stage, samples, config, accelerator, done)
            if done == steps or done % config.checkpoint_every == 0 or stop:
                save(done)
            if stop and done < steps:
                raise KeyboardInterrupt(f"stopped after step {done} and saved; --resume goes on")

    with run.averaged():
        stage.save(config.artifact or config.output)
        draw_samples(stage, samples, config, accelerator, steps)
    log.finish()
    accelerator.wait_for_everyone()


def make_accelerator(config: LoopConfig) -> Accelerator:
    """Raises ColorFluxError when the tracker is not installed, or accelerate wants to shard."""
    trackers = [config.tracker] if config.tracker != "none" else []
    if not {*trackers} <= {str(tracker) for tracker in get_available_trackers()}:
        raise ColorFluxError(f"--tracker {config.tracker} is not installed: pip install it")
    accelerator = Accelerator(
        cpu=devices().device.type == "cpu",
        mixed_precision=config.precision,
        log_with=trackers or None,
        project_dir=config.output,
    )
    if accelerator.distributed_type in ("FSDP", "DEEPSPEED"):
        raise ColorFluxError(
            "accelerate is configured to shard; leave that to --shard, and launch with --multi_gpu"
        )
    return accelerator


def micro_batch_size(config: LoopConfig, devices: int) -> int:
    """Raises ColorFluxError when the batch cannot be shared out."""
    micro_batch = config.micro_batch or config.batch_size // devices
    if not micro_batch or config.batch_size % (micro_batch * devices):
        raise ColorFluxError(
            f"--batch_size {config.batch_size} must be a multiple of --micro_batch"
            + (f" on each of {devices} devices" if devices > 1 else "")
        )
    return micro_batch


def synchronized(
    accelerator: Accelerator, module: nn.Module, last: bool
) -> AbstractContextManager[None]:
    """Devices exchange gradients in the last micro batch of a step only."""
    if isinstance(module, FSDPModule):
        module.set_requires_gradient_sync(last)
        return nullcontext()
    return nullcontext() if last else accelerator.no_sync(module)


@torch.no_grad()
def draw_samples(
    stage: Stage, samples: list[Picture], config: LoopConfig, accelerator: Accelerator, step: int
) -> None:
    """All devices draw if the weights are shared out among them, else one does."""
    if config.shard or accelerator.is_main_process:
        with accelerator.autocast():
            sheet = stage.sample(samples)
        if sheet and accelerator.is_main_process:
            grow_sheet(config.output, sheet, step)
    accelerator.wait_for_everyone()


class Log:
    """Where metrics go: ``metrics.jsonl``, the tracker, and a progress bar."""

    def __init__(self, config: LoopConfig, accelerator: Accelerator, first_step: int) -> None:
        self.accelerator, self.file = accelerator, config.output / "metrics.jsonl"
        self.name = config.output.name
        if accelerator.is_main_process:
            forget_lines(self.file, first_step)
            forget_sheets(config.output, first_step)
        purge = {"tensorboard": {"purge_step": first_step}}
        accelerator.init_trackers("tracker", init_kwargs=purge)

    def __call__(self, step: int, metrics: dict[str, float]) -> None:
        if self.accelerator.is_main_process:
            log_line(self.file, step, metrics)
        self.accelerator.log(metrics, step)

    def finish(self) -> None:
        for tracker in self.accelerator.trackers:
            tracker.finish()

    def progress(self, first_step: int, steps: int) -> tqdm:
        main = self.accelerator.is_main_process
        return tqdm(total=steps, initial=first_step, desc=self.name, unit="step", disable=not main)
