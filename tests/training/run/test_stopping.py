"""Ctrl-C and SIGTERM, as users and clusters send them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from itertools import chain
from pathlib import Path

import pytest

from tests.training.runs import assert_same_end, during_step, metrics, saved_steps
from tests.training.smallest import line_run, line_training
from tests.training.tiny_training import CANVAS, Setup
from training import basic_color
from training.run.stopping import defer_signals

ROOT = Path(__file__).resolve().parents[3]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_step_that_is_running_is_ended_and_saved(
    tmp_path: Path, number: signal.Signals
) -> None:
    training = during_step(line_training(), 2, lambda: signal.raise_signal(number))
    with pytest.raises(
        KeyboardInterrupt, match="stopped and saved after step 3; --resume continues"
    ):
        line_run(tmp_path / "parted", training)
    assert saved_steps(tmp_path / "parted") == [3]
    line_run(tmp_path / "parted", resume=True)
    line_run(tmp_path / "whole")
    assert_same_end(tmp_path / "whole", tmp_path / "parted")


def test_in_the_last_step_it_is_too_late(tmp_path: Path) -> None:
    line_run(tmp_path, during_step(line_training(), 3, lambda: signal.raise_signal(signal.SIGINT)))
    assert (tmp_path / "line.safetensors").is_file()


def test_the_second_signal_is_obeyed_at_once() -> None:
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt), defer_signals() as request:
        signal.raise_signal(signal.SIGTERM)
        assert request.received
        signal.raise_signal(signal.SIGINT)
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_command_ends_in_one_line(setup: Setup, tmp_path: Path, number: signal.Signals) -> None:
    """With a checkpoint of the step where it was; then it ends like one that was not stopped."""
    flags = {
        "--base": setup.folder / "base",
        "--manifest": setup.folder / "photos.csv",
        "--photos": setup.folder / "photos",
        "--cache": setup.folder / "cache",
        "--canvas": CANVAS,
        "--loss": "distill",
        "--precision": "no",
        "--frozen": "float32",
        "--tracker": "none",
        "--batch_size": 4,
        "--workers": 0,
    }
    words = [str(word) for word in chain(*flags.items())]
    parted, whole, endless = tmp_path / "parted", tmp_path / "whole", ("--steps", "1000000")
    process = subprocess.Popen(
        [sys.executable, "-m", "training.basic_color", *words, f"--output={parted}", *endless],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    waiting = time.monotonic()
    log = parted / "metrics.jsonl"
    while not (log.exists() and log.stat().st_size) and process.poll() is None:
        assert time.monotonic() - waiting < 120
        time.sleep(0.01)
    process.send_signal(number)
    errors = process.communicate()[1]
    assert process.returncode == 130
    steps = len(metrics(parted))
    assert saved_steps(parted) == [steps]
    said = f"basic_color: stopped and saved after step {steps}; --resume continues"
    assert errors.splitlines()[-1] == said
    assert "Traceback" not in errors

    until = ["--steps", str(steps + 2)]
    basic_color.main([*words, *until, "--output", str(parted), "--resume"])
    basic_color.main([*words, *until, "--output", str(whole)])
    assert_same_end(whole, parted)
