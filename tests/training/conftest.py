"""One set of photos and models for all of the trainers' tests, and each stage trained once."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from accelerate.state import AcceleratorState

from tests.training.runs import Trained, trained_stage
from tests.training.tiny_training import Setup, make_setup


@pytest.fixture(autouse=True)
def new_accelerator() -> Iterator[None]:
    """Accelerate keeps one precision for a process."""
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture(scope="session")
def setup(tmp_path_factory: pytest.TempPathFactory) -> Setup:
    return make_setup(tmp_path_factory.mktemp("setup"))


@pytest.fixture(scope="session")
def trained(setup: Setup, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Trained]:
    """A stage after the ten steps of its trajectory."""
    runs: dict[str, Trained] = {}

    def run(name: str) -> Trained:
        if name not in runs:
            output = tmp_path_factory.mktemp("runs") / name
            runs[name] = trained_stage(setup, name, output)
        return runs[name]

    return run
