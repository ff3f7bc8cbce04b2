"""Two processes train as one with the whole batch, by DDP and by FSDP2 (gloo, on the CPU)."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from tests.training.tiny_training import Setup, make_setup
from tests.training.train_on_devices import OPTIONS, STAGES, STEPS
from training.run.loop import train

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def setup(tmp_path_factory: pytest.TempPathFactory) -> Setup:
    return make_setup(tmp_path_factory.mktemp("setup"))


@pytest.fixture(scope="module")
def alone(setup: Setup, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One process, the whole batch at once, not interrupted."""
    output = tmp_path_factory.mktemp("alone")
    for stage in STAGES:
        config = setup.config(stage, output / stage, steps=STEPS, **OPTIONS | {"micro_batch": 4})
        train(setup.training(stage, config), config)
    return output


@pytest.fixture(scope="module", params=["ddp", "shard"])
def together(
    request: pytest.FixtureRequest, setup: Setup, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Two processes, two micro batches each, stopped and resumed half way."""
    output = tmp_path_factory.mktemp("together")
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run(
        [
            *launch,
            "-m",
            "tests.training.train_on_devices",
            str(setup.folder),
            str(output),
            request.param,
        ],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return output


def checkpoint(folder: Path, step: int = STEPS) -> Any:
    return torch.load(folder / f"checkpoints/step-{step:07}.pt", weights_only=True)


def norm(tensors: Iterable[Tensor]) -> Tensor:
    return torch.stack([tensor.double().square().sum() for tensor in tensors]).sum().sqrt()


@pytest.mark.parametrize("stage", STAGES)
def test_two_train_as_one(setup: Setup, alone: Path, together: Path, stage: str) -> None:
    """But for rounding, beside what was learned; Adam turns some of it into whole steps."""
    begun = setup.training(stage, setup.config(stage, together / "none")).stage.trainable
    start = {name: p for name, p in begun.named_parameters() if p.requires_grad}
    one, two = (checkpoint(output / stage)["weights"] for output in (alone, together))
    assert one.keys() == two.keys() == start.keys()
    learned = norm(one[name] - start[name].detach() for name in start)
    assert learned > 0
    assert norm(one[name] - two[name] for name in start) < 0.02 * learned


@pytest.mark.parametrize("stage", STAGES)
def test_they_log_the_means_of_the_whole_batch(alone: Path, together: Path, stage: str) -> None:
    one, two = (
        json.loads((output / stage / "metrics.jsonl").read_text(encoding="utf-8").splitlines()[0])
        for output in (alone, together)
    )
    of_the_machine = {"images_per_s": 0.0, "peak_memory": 0.0}
    assert two | of_the_machine == pytest.approx(one | of_the_machine, rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("stage", STAGES)
def test_one_goes_on_from_the_checkpoint_of_two(
    setup: Setup, alone: Path, together: Path, tmp_path: Path, stage: str
) -> None:
    """As from its own: with their weights, moments and averages."""
    after = []
    for output in (alone, together):
        folder = tmp_path / output.name
        shutil.copytree(output / stage, folder)
        config = setup.config(stage, folder, steps=STEPS + 1, resume=True, **OPTIONS)
        train(setup.training(stage, config), config)
        after.append(checkpoint(folder, STEPS + 1))
    begun = checkpoint(together / stage)
    for kind in ("weights", "ema"):
        one, two, start = (
            list(state[kind].get("shadow_params") or state[kind].values())
            for state in (*after, begun)
        )
        moved = norm(a - b for a, b in zip(two, start, strict=True))
        apart = norm(a - b for a, b in zip(one, two, strict=True))
        assert 0 < apart < 0.1 * moved


def test_the_artifact_of_shards_is_whole(alone: Path, together: Path) -> None:
    files = sorted(file.relative_to(alone) for file in alone.rglob("*.safetensors"))
    assert files == sorted(file.relative_to(together) for file in together.rglob("*.safetensors"))
    for file in files:
        one, two = load_file(alone / file), load_file(together / file)
        assert {k: t.shape for k, t in one.items()} == {k: t.shape for k, t in two.items()}
