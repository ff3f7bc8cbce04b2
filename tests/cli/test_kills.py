"""Killed folder runs: a short version of ``python -m tests.kill_folders``."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.kill_folders import COMMANDS, kill_runs


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
def test_kills_lose_nothing_and_leave_nothing_behind(tmp_path: Path, command: str) -> None:
    _, wrong = kill_runs(tmp_path / command, command, 2, random.Random(0))
    assert not wrong
