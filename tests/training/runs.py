"""What the trainers' tests share: runs, and what is left of them."""

from __future__ import annotations

import itertools
import json
import resource
import signal
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate.state import AcceleratorState
from torch import Tensor, nn

from colorflux_core.loading import load
from tests.training.tiny_training import Setup
from training.data.order import SampleIndex, generator
from training.data.rows import Batch, Rows
from training.run.checkpoint import checkpoints
from training.run.loop import train
from training.stage import Training

PAPER_STAGES = ("structure", "basic_color", "pro_dpo")

Weights = dict[str, Tensor]


@dataclass
class Trained:
    """A stage after its run, and its models' weights before."""

    stage: Any
    rows: Rows
    before: dict[str, Weights]
    output: Path


@torch.enable_grad()
def trained_stage(setup: Setup, name: str, output: Path, **changes: Any) -> Trained:
    """A stage trained by a run of its own; several may follow each other in one process."""
    AcceleratorState._reset_state(reset_partial_state=True)
    config = setup.config(name, output, **changes)
    training = setup.training(name, config)
    before = {name: weights(model) for name, model in models(training.stage).items()}
    train(training, config)
    return Trained(training.stage, training.rows, before, output)


def models(stage: Any) -> dict[str, nn.Module]:
    return {name: value for name, value in vars(stage).items() if isinstance(value, nn.Module)}


def weights(module: nn.Module) -> Weights:
    return {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}


def changed(before: Weights, after: Weights) -> set[str]:
    """The names of the weights that are not the same."""
    assert before.keys() == after.keys()
    return {name for name in before if not torch.equal(before[name], after[name])}


def raw_batch(rows: Rows, count: int = 4) -> Batch:
    """The first rows, before anything random is drawn."""
    indices = [SampleIndex(row, row) for row in range(count)]
    return next(load(rows, workers=0, batch_sampler=[indices]))


def fixed_batch(stage: Any, rows: Rows, count: int = 4) -> Batch:
    """The first rows with their noise and timesteps, the same on every call."""
    return stage.prepare_batch(raw_batch(rows, count), [generator(0, row) for row in range(count)])


def assert_all_that_learns_has_a_gradient(stage: Any, rows: Rows) -> None:
    """Or training on several GPUs would fail. The pooled text is zero: it feeds a bias alone."""
    stage.loss(fixed_batch(stage, rows))[0].backward()
    for key, parameter in stage.trainable.named_parameters():
        assert parameter.requires_grad == (parameter.grad is not None), key
        if parameter.grad is not None and not key.endswith("text_embedder.linear_1.weight"):
            assert parameter.grad.any(), key
    stage.trainable.zero_grad()


def metrics(output: Path) -> list[dict[str, float]]:
    lines = (output / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def losses(output: Path) -> list[float]:
    return [step["loss"] for step in metrics(output)]


def saved_state(output: Path) -> dict[str, Any]:
    """The newest checkpoint."""
    return torch.load(checkpoints(output)[0], weights_only=True)


def saved_steps(output: Path) -> list[int]:
    """The steps behind each checkpoint, the newest first."""
    return [int(path.stem.removeprefix("step-")) for path in checkpoints(output)]


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def assert_same_end(one: Path, other: Path) -> None:
    """Bit for bit: all that the last checkpoints hold, the artifacts, and every logged loss."""
    states = [dict(leaves(saved_state(output))) for output in (one, other)]
    assert states[0].keys() == states[1].keys()
    for key, value in states[0].items():
        if isinstance(value, Tensor):
            assert torch.equal(value, states[1][key]), key
        else:
            assert value == states[1][key], key
    artifacts = [artifact.relative_to(one) for artifact in one.rglob("*.safetensors")]
    assert artifacts
    for artifact in artifacts:
        assert (one / artifact).read_bytes() == (other / artifact).read_bytes(), artifact
    logged = [[(step["step"], step["loss"]) for step in metrics(output)] for output in (one, other)]
    assert logged[0] == logged[1]


def leaves(state: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    items: Iterable[tuple[Any, Any]]
    items = state.items() if isinstance(state, dict) else enumerate(state)
    for key, value in items:
        if isinstance(value, dict | list | tuple):
            yield from leaves(value, f"{path}/{key}")
        else:
            yield f"{path}/{key}", value


def during_step(training: Training, step: int, event: Callable[[], object]) -> Training:
    """The training, with something that happens in a step, counted from the run's first."""
    stage: Any = training.stage
    draw, steps = stage.prepare_batch, itertools.count()

    def draw_in_the_event(*given: Any) -> Batch:
        if next(steps) == step:
            event()
        return draw(*given)

    stage.prepare_batch = draw_in_the_event
    return training


class Killed(BaseException):
    """No one catches it, as no one catches SIGKILL."""


def kill() -> None:
    raise Killed


@contextmanager
def files_up_to(size: int) -> Iterator[None]:
    """Inside, writing more bytes than that fails, as it does on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
