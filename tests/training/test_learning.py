"""What each stage learns, and what it leaves alone."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from colorflux_core.model.lora import reference_policy
from tests.flux_models import velocity
from tests.training.runs import (
    PAPER_STAGES,
    Trained,
    assert_all_that_learns_has_a_gradient,
    changed,
    contents,
    fixed_batch,
    models,
    weights,
)
from tests.training.tiny_training import STAGES, Setup, make_setup
from training.models.parts import Parts

LEARNING = {
    "vae": {"trainable": r"decoder\..*"},
    "flux": {"trainable": ".*", "transformer": ".*", "redux": ".*"},
    "structure": {"trainable": ".*"},
    "basic_color": {"trainable": r"image_embedder\..*"},
    "pro_dpo": {"trainable": r".*\.lora_[AB]\..*"},
}
"""The weights that learn, by the stage's attribute."""


@pytest.mark.parametrize("name", STAGES)
def test_a_fixed_batch_is_learned(setup: Setup, tmp_path: Path, name: str) -> None:
    stage, rows, _ = setup.training(name, setup.config(name, tmp_path))
    batch = fixed_batch(stage, rows)
    learning = [p for p in stage.trainable.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(learning, 1e-4 if name == "vae" else 3e-3)
    losses = []
    for _ in range(10):
        loss, _ = stage.loss(batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.99 * losses[0]


@pytest.mark.parametrize("name", STAGES)
def test_only_what_should_learn_changes(trained: Callable[[str], Trained], name: str) -> None:
    run = trained(name)
    after = {attribute: weights(model) for attribute, model in models(run.stage).items()}
    assert after.keys() == run.before.keys()
    for attribute, before in run.before.items():
        learned = changed(before, after[attribute])
        pattern = LEARNING[name].get(attribute, "nothing")
        assert all(re.fullmatch(pattern, weight) for weight in learned)
        assert bool(learned) == (attribute in LEARNING[name])


@pytest.mark.parametrize("name", ["flux", *PAPER_STAGES])
def test_every_weight_that_learns_has_a_gradient(
    trained: Callable[[str], Trained], name: str
) -> None:
    run = trained(name)
    assert_all_that_learns_has_a_gradient(run.stage, run.rows)


def test_the_base_on_disk_is_left_alone(
    setup: Setup, trained: Callable[[str], Trained], tmp_path: Path
) -> None:
    for name in PAPER_STAGES:
        trained(name)
    untouched = contents(make_setup(tmp_path / "again").folder / "base")
    assert contents(setup.folder / "base") == untouched


def test_the_dpo_reference_stays_the_pretrained_transformer(
    setup: Setup, trained: Callable[[str], Trained], tmp_path: Path
) -> None:
    transformer = trained("pro_dpo").stage.trainable
    pretrained = Parts(setup.config("pro_dpo", tmp_path)).load("transformer")
    with torch.no_grad():
        assert not torch.equal(velocity(transformer), velocity(pretrained))
        with reference_policy(transformer):
            assert torch.equal(velocity(transformer), velocity(pretrained))
