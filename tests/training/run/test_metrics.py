"""What is logged of a step, under which names, and where."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from colorflux_core.loading import load
from tests.training.runs import Killed, Trained, during_step, kill, losses, metrics, trained_stage
from tests.training.smallest import line_run, line_training
from tests.training.tiny_training import STAGES, Setup
from training.data.order import MicroBatches, generator
from training.run.metrics import BUCKETS, MetricMeter, log_line, truncate_log

LOOP = {"step", "loss", "grad_norm", "learning_rate", "images_per_s", "peak_memory"}
STAGE = {
    "vae": {"psnr", "chroma_error"},
    "flux": {"flow_loss"},
    "structure": {"flow_loss"},
    "basic_color": {"flow_loss", "distillation_loss"},
    "pro_dpo": {
        "dpo_loss",
        "implicit_accuracy",
        "margin",
        "logit",
        "winner_error",
        "loser_error",
    },
}
FLOW = [f"flow_loss_t/{low / 5:.1f}-{(low + 1) / 5:.1f}" for low in range(5)]


@pytest.mark.parametrize("name", STAGES)
def test_the_names_are_fixed(trained: Callable[[str], Trained], name: str) -> None:
    lines = metrics(trained(name).output)
    assert [line["step"] for line in lines] == list(range(10))
    for line in lines:
        assert {key for key in line if key not in FLOW} == LOOP | STAGE[name]
    buckets = {key for line in lines for key in line} & set(FLOW)
    assert buckets == (set(FLOW) if "flow_loss" in STAGE[name] else set())


def test_means_are_over_rows_whatever_they_came_in() -> None:
    """Rows one by one, in unequal parts, or the means of those parts."""
    values = torch.tensor([1.0, 2.0, 4.0, 8.0, 16.0])
    means = []
    for parts in ([5], [1, 4], [2, 2, 1], [1] * 5):
        by_row, by_mean = MetricMeter(), MetricMeter()
        for part in values.split(parts):
            by_row.add("error", part, len(part))
            by_mean.add("error", part.mean(), len(part))
        means += [of.over_devices(Accelerator(cpu=True)) for of in (by_row, by_mean)]
    assert all(mean == {"error": pytest.approx(6.2)} for mean in means)


def test_timesteps_at_the_bounds_have_a_bucket() -> None:
    means = MetricMeter()
    bounds = torch.tensor([0.0, 0.19, 0.2, 0.5, 0.99, 1.0])
    means.add_by_timestep("error", torch.arange(6.0), bounds)
    assert means.over_devices(Accelerator(cpu=True)) == {
        "error_t/0.0-0.2": 0.5,
        "error_t/0.2-0.4": 2.0,
        "error_t/0.4-0.6": 3.0,
        "error_t/0.8-1.0": 4.5,
    }


@torch.no_grad()
def test_buckets_are_the_means_of_the_rows_in_them(setup: Setup, tmp_path: Path) -> None:
    """Of all micro batches of a step, before it is taken."""
    trained_stage(setup, "structure", tmp_path, steps=1, batch_size=8, micro_batch=2)
    (line,) = metrics(tmp_path)
    stage, rows, _ = setup.training("structure", setup.config("structure", tmp_path / "again"))
    (whole,) = load(rows, 0, batch_sampler=MicroBatches(len(rows), 8, 8, 0, range(1)))
    batch = stage.prepare_batch(
        whole, [generator(0, position) for position in whole["position"].tolist()]
    )
    error = stage.loss(batch)[1]["flow_loss"]
    assert line["flow_loss"] == pytest.approx(error.mean().item(), rel=1e-4)
    found = 0
    for index, name in enumerate(FLOW):
        inside = (batch["t"] >= index / BUCKETS) & (batch["t"] < (index + 1) / BUCKETS)
        found += int(inside.sum())
        assert (name in line) == bool(inside.any())
        if name in line:
            assert line[name] == pytest.approx(error[inside].mean().item(), rel=1e-4)
    assert found == 8


def test_the_gradients_norm_is_that_of_the_whole_batch(tmp_path: Path) -> None:
    """As it is before clipping, over all micro batches."""
    line_run(tmp_path, line_training(), steps=1, micro_batch=1, max_grad_norm=1e-3)
    stage, rows, _ = line_training()
    (whole,) = load(rows, 0, batch_sampler=MicroBatches(len(rows), 4, 4, 0, range(1)))
    stage.loss(stage.prepare_batch(whole, [generator(0, position) for position in range(4)]))[
        0
    ].backward()
    gradients = [p.grad.square().sum() for p in stage.trainable.parameters() if p.grad is not None]
    norm = math.sqrt(sum(gradients))
    assert metrics(tmp_path)[0]["grad_norm"] == pytest.approx(norm, rel=1e-5)


def test_the_learning_rate_is_the_one_of_the_step(tmp_path: Path) -> None:
    options: dict[str, Any] = {
        "schedule": "cosine",
        "warmup_steps": 2,
        "learning_rate": 0.1,
        "steps": 6,
    }
    line_run(tmp_path, **options)
    rates = [line["learning_rate"] for line in metrics(tmp_path)]
    falling = [0.05 * (1 + math.cos(math.pi * step / 4)) for step in range(4)]
    assert rates == pytest.approx([0, 0.05, *falling], rel=1e-4)


def test_each_step_is_logged_once_also_after_it_was_resumed(tmp_path: Path) -> None:
    line_run(tmp_path / "whole", steps=7)
    parted = tmp_path / "parted"
    with pytest.raises(Killed):
        line_run(parted, during_step(line_training(), 5, kill), steps=7, checkpoint_every=2)
    assert len(losses(parted)) == 5  # The checkpoint is of step 4.
    with (parted / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"step": 5, "lo')  # Killed while it wrote.
    line_run(parted, steps=7, checkpoint_every=2, resume=True)
    assert [line["step"] for line in metrics(parted)] == list(range(7))
    assert losses(parted) == losses(tmp_path / "whole")


def test_lines_from_a_step_on_are_forgotten(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    truncate_log(path, 0)
    for step in range(4):
        log_line(path, step, {"loss": 1 / 3})
    truncate_log(path, 2)
    assert metrics(tmp_path) == [{"step": step, "loss": 0.333333} for step in range(2)]


def test_tensorboard_shows_the_same(tmp_path: Path) -> None:
    """Also of a run that was resumed: no step twice."""
    options: dict[str, Any] = {"steps": 5, "checkpoint_every": 2, "tracker": "tensorboard"}
    with pytest.raises(Killed):
        line_run(tmp_path, during_step(line_training(), 3, kill), **options)
    line_run(tmp_path, **options, resume=True)
    folders = {file.parent for file in tmp_path.rglob("events.out.tfevents.*")}
    (folder,) = folders
    shown = EventAccumulator(str(folder)).Reload()
    assert set(shown.Tags()["scalars"]) == (LOOP | {"error"}) - {"step"}
    scalars = shown.Scalars("loss")
    assert Counter(scalar.step for scalar in scalars) == Counter(range(5))
    assert [scalar.value for scalar in scalars] == pytest.approx(losses(tmp_path), rel=1e-5)
