"""The training loop of all stages, on one device or, with ``accelerate launch``, on several."""

from __future__ import annotations

import logging
import math
import time
from contextlib import AbstractContextManager, nullcontext

import torch
from accelerate import Accelerator
from accelerate.tracking import get_available_trackers
from torch import nn
from torch.distributed.fsdp import FSDPModule
from tqdm import tqdm

from colorflux_core.errors import ColorFluxError
from colorflux_core.loading import load

from ..config import LoopConfig
from ..data.order import MicroBatches, generator
from ..data.pictures import Picture
from ..data.rows import Batch
from ..models.parallel import devices, full_tensor, parallel
from ..stage import Stage, Training
from .checkpoint import checkpoints, load_checkpoint, save_checkpoint
from .metrics import MetricMeter, log_line, peak_memory, truncate_log
from .sheets import append_to_sheet, truncate_sheets
from .state import RunState
from .stopping import defer_signals

logger = logging.getLogger(__name__)


def train(training: Training, config: LoopConfig) -> None:
    """Train ``stage.trainable`` and save the artifact to ``config.artifact`` or ``config.output``.

    Raises:
        ColorFluxError: if settings contradict each other; if the output already holds a run and
            ``--resume`` is not given, or that run had other settings; if the loss becomes
            non-finite or explodes; if a checkpoint cannot be written.
        KeyboardInterrupt: on SIGINT or SIGTERM, after saving a checkpoint.
    """
    # Devices, batch sizes and the output folder.
    stage, rows, samples = training
    require_startable(config)
    accelerator = make_accelerator(config)
    micro_batch = config.micro_batch_size(accelerator.num_processes)
    accumulation_steps = config.batch_size // micro_batch // accelerator.num_processes
    try:
        config.output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ColorFluxError(
            f"--output {config.output} cannot be created: {error.strerror}"
        ) from error

    # Start a new run, or restore it from its newest checkpoint.
    steps = config.steps_for(len(rows))
    module = parallel(stage, accelerator, config.shard)
    run = RunState(stage.trainable, rows, config, steps, accelerator)
    saved = load_checkpoint(config.output)
    first_step = run.restore(saved) if saved else 0
    log = Log(config, accelerator, first_step)
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
        pin_memory=accelerator.device.type == "cuda",
    )

    def save(step: int) -> None:
        """Write a checkpoint; all processes must call it."""
        state = run.state(step)
        if accelerator.is_main_process:
            save_checkpoint(config.output, step, state, config.keep_checkpoints)
        accelerator.wait_for_everyone()

    with defer_signals() as request, log.progress(first_step, steps) as progress:
        for step in range(first_step, steps):
            # Accumulate the gradients of all micro-batches.
            began = time.perf_counter()
            meter, step_rows = MetricMeter(), []
            for index in range(accumulation_steps):
                micro = next(micro_batches)
                step_rows += micro.pop("row").tolist()
                batch = prepare_micro_batch(stage, micro, config.seed, accelerator.device)
                is_last = index == accumulation_steps - 1
                with synchronized(accelerator, module, is_last):
                    with accelerator.autocast():
                        loss, metrics = module(batch)
                    accelerator.backward(loss / accumulation_steps)
                meter.add("loss", loss, micro_batch)
                for name, value in metrics.items():
                    meter.add(name, value, micro_batch)
                if "flow_loss" in metrics:
                    meter.add_by_timestep("flow_loss", metrics["flow_loss"], batch["t"])

            # Reduce the metrics over all devices, including whether any received a stop signal.
            norm = accelerator.clip_grad_norm_(run.parameters, config.max_grad_norm or math.inf)
            stop_signal = torch.tensor(float(request.received), device=accelerator.device)
            meter.add("stop", stop_signal, 1)
            logged = meter.over_devices(accelerator)
            logged["grad_norm"] = full_tensor(norm).item()
            stop = logged.pop("stop") > 0

            # Take the optimizer step, unless loss or gradient would damage the weights.
            run.require_sound(logged, step, [rows.photos[row] for row in step_rows])
            logged["learning_rate"] = run.schedule.get_last_lr()[0]
            run.step()

            # Log metrics and progress.
            logged["images_per_s"] = config.batch_size / (time.perf_counter() - began)
            logged["peak_memory"] = peak_memory(accelerator.device)
            log(step, logged)
            progress.update()
            progress.set_postfix_str(
                f"loss {logged['loss']:.4f}, {logged['images_per_s']:.1f} images/s", refresh=False
            )

            # Draw samples, save checkpoints and stop on a signal.
            done = step + 1
            if config.sample_every and done % config.sample_every == 0 and done < steps:
                with run.ema_weights():
                    draw_samples(stage, samples, config, accelerator, done)
            if done == steps or done % config.checkpoint_every == 0 or stop:
                save(done)
            if stop and done < steps:
                raise KeyboardInterrupt(f"stopped and saved after step {done}; --resume continues")

    # Save the artifact and the last samples.
    with run.ema_weights():
        stage.save(config.artifact or config.output)
        draw_samples(stage, samples, config, accelerator, steps)
    log.finish()
    accelerator.wait_for_everyone()


def prepare_micro_batch(stage: Stage, micro: Batch, seed: int, device: torch.device) -> Batch:
    """Move a micro-batch to the device and let the stage add noise and other random columns."""
    generators = [generator(seed, position) for position in micro.pop("position").tolist()]
    on_device = {name: column.to(device, non_blocking=True) for name, column in micro.items()}
    return stage.prepare_batch(on_device, generators)


def require_startable(config: LoopConfig) -> None:
    """Check what can be checked before photos are encoded and models are loaded.

    Raises ColorFluxError if the batch cannot be divided, if the tracker is not installed, or if the
    output already holds a run and ``--resume`` is not given.
    """
    config.micro_batch_size(devices().num_processes)
    trackers = {config.tracker} - {"none"}
    if not trackers <= {str(tracker) for tracker in get_available_trackers()}:
        raise ColorFluxError(
            f"--tracker {config.tracker} is not installed: pip install {config.tracker}"
        )
    if checkpoints(config.output) and not config.resume:
        raise ColorFluxError(
            f"{config.output} already holds a run: use --resume or another --output"
        )


def make_accelerator(config: LoopConfig) -> Accelerator:
    """Create the Accelerator. Raises ColorFluxError if accelerate is configured to shard."""
    accelerator = Accelerator(
        cpu=devices().device.type == "cpu",
        mixed_precision=config.precision,
        log_with=config.tracker if config.tracker != "none" else None,
        project_dir=config.output,
    )
    if accelerator.distributed_type in ("FSDP", "DEEPSPEED"):
        raise ColorFluxError(
            "accelerate is configured to shard: use --shard instead, and launch with --multi_gpu"
        )
    return accelerator


def synchronized(
    accelerator: Accelerator, module: nn.Module, last: bool
) -> AbstractContextManager[None]:
    """Synchronize gradients between devices only in the last micro-batch of a step."""
    if isinstance(module, FSDPModule):
        module.set_requires_gradient_sync(last)
        return nullcontext()
    return nullcontext() if last else accelerator.no_sync(module)


@torch.no_grad()
def draw_samples(
    stage: Stage, samples: list[Picture], config: LoopConfig, accelerator: Accelerator, step: int
) -> None:
    """Draw and save a sample sheet: on all devices if weights are sharded, else on the main one."""
    if config.shard or accelerator.is_main_process:
        with accelerator.autocast():
            sheet = stage.sample(samples)
        if sheet and accelerator.is_main_process:
            append_to_sheet(config.output, sheet, step)
    accelerator.wait_for_everyone()


class Log:
    """Writes metrics to ``metrics.jsonl`` and the tracker, and creates the progress bar."""

    def __init__(self, config: LoopConfig, accelerator: Accelerator, first_step: int) -> None:
        self.accelerator, self.file = accelerator, config.output / "metrics.jsonl"
        self.name = config.output.name
        if accelerator.is_main_process:
            truncate_log(self.file, first_step)
            truncate_sheets(config.output, first_step)
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
