"""Losses that are committed; ``python -m tests.training.test_trajectories`` draws them anew.

Do that only when a change of the numbers is meant, and say why in the commit.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.training.runs import Trained, losses, trained_stage
from tests.training.tiny_training import STAGES, make_setup

TRAJECTORIES = Path(__file__).with_name("trajectories.json")


@pytest.mark.parametrize("name", STAGES)
def test_it_takes_the_committed_trajectory(trained: Callable[[str], Trained], name: str) -> None:
    """How to draw it anew stands at the top of this file."""
    expected = json.loads(TRAJECTORIES.read_text(encoding="utf-8"))[name]
    assert losses(trained(name).output) == pytest.approx(expected, rel=1e-4)


def draw_trajectories() -> None:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        setup = make_setup(Path(folder) / "setup")
        drawn = {
            name: losses(trained_stage(setup, name, Path(folder) / name).output) for name in STAGES
        }
    TRAJECTORIES.write_text(json.dumps(drawn, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    draw_trajectories()
