"""What the tests of the study share: small benchmarks in plain colors, and a server to kill."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from PIL import Image

from colorflux_core.evaluation.benchmark.methods import Method
from colorflux_core.evaluation.benchmark.sets import BenchmarkSet, Item

ROOT = Path(__file__).resolve().parents[3]
Reds = Mapping[str, Mapping[str, int]]
"""By method, by image: how red the result is."""


def bench(folder: Path, name: str, images: Mapping[str, tuple[int, int]]) -> BenchmarkSet:
    """A set of gray inputs of these (width, height)."""
    (folder / name).mkdir(parents=True)
    for image, size in images.items():
        Image.new("L", size, 128).save(folder / name / f"{image}.png")
    return BenchmarkSet(
        name, tuple(Item(image, folder / name / f"{image}.png", None) for image in images)
    )


def results(folder: Path, reds: Reds, size: tuple[int, int] = (60, 40)) -> list[Method]:
    """Folders of results in plain colors."""
    for method, images in reds.items():
        (folder / method).mkdir(parents=True)
        for image, red in images.items():
            Image.new("RGB", size, (red, 90, 90)).save(folder / method / f"{image}.png")
    return [Method(method, folder / method) for method in reds]


@contextmanager
def serving(
    study: Path, port: int = 0, host: str = "127.0.0.1"
) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """The real command: its address, and the process to kill."""
    command = [sys.executable, "-m", "colorflux_core.evaluation", "study", "serve", str(study)]
    with subprocess.Popen(
        [*command, "--port", str(port), "--host", host], cwd=ROOT, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stderr
            found = re.search(r"http://\S+", line := process.stderr.readline())
            assert found, line + process.stderr.read()
            yield found.group(), process
        finally:
            process.kill()
