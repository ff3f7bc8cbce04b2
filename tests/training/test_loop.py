"""The loop: micro batches and interruptions change nothing, and what it refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from colorflux_core.errors import ColorFluxError
from tests.tiny_training import STAGES, Setup
from tests.training.runs import (
    Killed,
    assert_same_end,
    contents,
    during_step,
    kill,
    metrics,
    saved_steps,
    trained_stage,
    weights,
)
from tests.training.smallest import line_run, line_training
from training.loop import train


@pytest.mark.parametrize("name", ["structure", "pro_dpo"])
def test_accumulation_changes_nothing(setup: Setup, tmp_path: Path, name: str) -> None:
    """Eight rows at once or one by one: the same but for rounding, beside what was learned."""
    logged, learned = [], []
    for micro_batch in (0, 1):
        options = {"steps": 3, "batch_size": 8, "micro_batch": micro_batch}
        run = trained_stage(setup, name, tmp_path / f"{micro_batch}", **options)
        aside = {"images_per_s": 0, "peak_memory": 0, "implicit_accuracy": 0}  # A count: it jumps.
        logged.append([step | aside for step in metrics(run.output)])
        after, before = weights(run.stage.trainable), run.before["trainable"]
        learned.append(torch.cat([(after[key] - before[key]).flatten() for key in after]))
    for one, other in zip(*logged, strict=True):
        assert other == pytest.approx(one, rel=1e-3, abs=1e-4)
    assert torch.dist(learned[0], learned[1]) < 1e-2 * learned[0].norm()


OPTIONS: dict[str, Any] = {
    "steps": 4,
    "checkpoint_every": 2,
    "ema_decay": 0.9,
    "schedule": "cosine",
    "warmup_steps": 2,
}
FRESH: dict[str, tuple[str, dict[str, Any]]] = {
    "pro_dpo, fresh losers": ("pro_dpo", {"pairs": 0}),
    "pro_dpo, fresh views": ("pro_dpo", {"pairs": 0, "fresh_views": True}),
    "structure, fresh views": ("structure", {"fresh_views": True, "old_photos": 0.5}),
}
RUNS: dict[str, tuple[str, dict[str, Any]]] = {name: (name, {}) for name in STAGES} | FRESH


@pytest.mark.parametrize("run", RUNS)
def test_resuming_is_going_on_bit_for_bit(setup: Setup, tmp_path: Path, run: str) -> None:
    """Killed in step 3 with a checkpoint of step 2: weights, Adam, schedule and EMA are equal."""
    name, changes = RUNS[run]
    whole, parted = tmp_path / "whole", tmp_path / "parted"
    trained_stage(setup, name, whole, **OPTIONS, **changes)

    config = setup.config(name, parted, **OPTIONS, **changes)
    with pytest.raises(Killed):
        train(during_step(setup.training(name, config), 3, kill), config)
    assert saved_steps(parted) == [2]
    trained_stage(setup, name, parted, **OPTIONS, **changes, resume=True)
    assert_same_end(whole, parted)


def test_killed_again_and_again_it_ends_the_same(tmp_path: Path) -> None:
    """The last pass over the rows is left in its middle, some checkpoints are never reached."""
    options: dict[str, Any] = {
        "steps": 23,
        "batch_size": 5,
        "checkpoint_every": 3,
        "ema_decay": 0.5,
    }
    line_run(tmp_path / "whole", **options)
    for step in (1, 5, 2, 7, 4, 9):
        with pytest.raises(Killed):
            killed = during_step(line_training(), step, kill)
            line_run(tmp_path / "parted", killed, **options, resume=True)
    line_run(tmp_path / "parted", **options, resume=True)
    assert_same_end(tmp_path / "whole", tmp_path / "parted")


def test_a_run_that_is_done_is_not_trained_on(tmp_path: Path) -> None:
    line_run(tmp_path)
    before = contents(tmp_path)
    line_run(tmp_path, resume=True)
    assert contents(tmp_path) == before


def test_a_run_is_not_overwritten_unasked(tmp_path: Path) -> None:
    line_run(tmp_path, steps=1)
    before = contents(tmp_path)
    with pytest.raises(ColorFluxError, match=f"{tmp_path}.*--resume"):
        line_run(tmp_path, steps=1)
    assert contents(tmp_path) == before


@pytest.mark.parametrize(("epochs", "steps"), [(1.0, 3), (2.5, 7), (0.01, 1)])
def test_without_steps_the_epochs_count(tmp_path: Path, epochs: float, steps: int) -> None:
    """Eight rows in batches of three."""
    line_run(tmp_path, steps=0, epochs=epochs, batch_size=3)
    assert saved_steps(tmp_path) == [steps]


def test_gradients_are_clipped(tmp_path: Path) -> None:
    """To far less than Adam's epsilon, so that it hardly moves; 0 leaves them as they are."""
    moved = []
    for norm in (0.0, 1e-12):
        training = line_training()
        line_run(tmp_path / f"{norm}", training, steps=1, learning_rate=0.1, max_grad_norm=norm)
        moved.append(max(p.abs().max().item() for p in training.stage.trainable.parameters()))
    assert moved[0] == pytest.approx(0.1, rel=1e-3)
    assert moved[1] < 1e-4
    logged = [metrics(tmp_path / f"{norm}")[0]["grad_norm"] for norm in (0.0, 1e-12)]
    assert logged[0] == logged[1] > 0.1  # As it was before.


@pytest.mark.parametrize("changes", [{"micro_batch": 3}, {"batch_size": 6, "micro_batch": 4}])
def test_a_batch_that_cannot_be_shared_out_is_refused(
    tmp_path: Path, changes: dict[str, Any]
) -> None:
    with pytest.raises(ColorFluxError, match=r"--batch_size \d must be a multiple of --micro"):
        line_run(tmp_path / "run", **changes)
    assert not (tmp_path / "run").exists()
