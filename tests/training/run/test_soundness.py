"""Losses and gradients that would spoil the weights stop the run."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from colorflux_core.errors import ColorFluxError
from tests.training.runs import changed, losses, saved_state, saved_steps, weights
from tests.training.smallest import PHOTOS, line_run, line_training
from tests.training.tiny_training import Setup
from training.data.order import SampleIndex, row_order
from training.data.rows import Column
from training.run.loop import train

SPOILED = 2
"""The step."""


def photos_of(step: int, rows: int, batch_size: int) -> list[int]:
    return sorted(place.row for place in next(row_order(rows, batch_size, 0, step)))


def at_place(number: int, value: float) -> Column:
    """1 everywhere else."""
    return lambda place: torch.tensor(value if place.position == number else 1.0)


def test_a_loss_that_is_not_finite_stops_it(setup: Setup, tmp_path: Path) -> None:
    config = setup.config("structure", tmp_path, steps=4, checkpoint_every=1)
    training = setup.training("structure", config)
    rows = training.rows
    batch = photos_of(SPOILED, len(rows), config.batch_size)
    latents = rows.columns["latents"]

    def poisoned(place: SampleIndex) -> Tensor:
        spoiled = place.position == SPOILED * config.batch_size
        return latents(place) * torch.nan if spoiled else latents(place)

    rows.columns = {**rows.columns, "latents": poisoned}
    names = ", ".join(f"{row}.png" for row in batch)
    with pytest.raises(ColorFluxError) as refusal:
        train(training, config)
    assert str(refusal.value).startswith(f"the loss is nan at step {SPOILED} on {names};")
    assert "checkpoint: step-0000002.pt" in str(refusal.value)
    assert_nothing_is_lost(tmp_path, training.stage.trainable)


def test_a_gradient_that_is_not_finite_stops_it(tmp_path: Path) -> None:
    """Its loss is finite."""
    training = line_training(kink=at_place(4 * SPOILED, 0.0))
    names = ", ".join(f"{row}.png" for row in photos_of(SPOILED, len(PHOTOS), 4))
    with pytest.raises(ColorFluxError) as refusal:
        line_run(tmp_path, training, checkpoint_every=1)
    said = f"the gradient norm is nan at step {SPOILED} on {names};"
    assert str(refusal.value).startswith(said)
    assert_nothing_is_lost(tmp_path, training.stage.trainable)


def assert_nothing_is_lost(output: Path, trainable: torch.nn.Module) -> None:
    """The checkpoint before is there, and not even the weights in memory have moved since."""
    assert saved_steps(output)[0] == SPOILED == len(losses(output))
    saved = saved_state(output)["weights"]
    assert all(weight.isfinite().all() for weight in saved.values())
    assert not changed(saved, weights(trainable))


def test_a_loss_that_explodes_stops_it(tmp_path: Path) -> None:
    """A hundred steps make the mean that it is held against, also those before a resumption."""
    explosive = at_place(4 * 104, 1e6)
    options = {"steps": 110, "learning_rate": 1e-3, "checkpoint_every": 103}
    for resume in (False, True):
        with pytest.raises(
            ColorFluxError,
            match=r"more than 100 times its recent mean .--max-loss-ratio. at step 104",
        ):
            line_run(tmp_path, line_training(scale=explosive), **options, resume=resume)
    assert saved_steps(tmp_path) == [103]
    line_run(tmp_path, line_training(scale=explosive), **options, max_loss_ratio=0, resume=True)
    assert saved_steps(tmp_path) == [110, 103]


def test_a_loss_may_be_high_before_there_is_a_mean(tmp_path: Path) -> None:
    line_run(tmp_path, line_training(scale=at_place(4 * 50, 1e6)), steps=60)
    assert max(losses(tmp_path)) > 100 * losses(tmp_path)[0]
