"""The short form of ``python -m tests.kill``."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]


def test_a_run_that_is_killed_ends_bit_identical() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.kill", "--kills", "4"],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "4 kills" in done.stdout and "bit-identical" in done.stdout
