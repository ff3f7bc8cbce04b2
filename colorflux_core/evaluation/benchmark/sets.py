"""Benchmark sets as in the paper's section 5.1, built from any photos.

``synthesized`` has photos in grayscale, ``augmented`` photos that were faded before the conversion
(section 4.2.1), and ``real`` unmodified old photos. A build is one folder:

    sets.csv                       one row per image: set, files, seed and fading factors
    truth/NAME.png                 the color photos
    synthesized/NAME.png           the inputs of each set
    augmented/NAME.png
    real/NAME.png
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from ...errors import ColorFluxError
from ..rows import read_rows

KINDS = ("synthesized", "augmented", "real")
MANIFEST = "sets.csv"


class Item(NamedTuple):
    """One image of a set: its name, the image to colorize and, if known, the color photo."""

    name: str
    input: Path
    truth: Path | None


@dataclass(frozen=True)
class BenchmarkSet:
    """A named set of images; all methods are compared on the same images."""

    name: str
    items: tuple[Item, ...]


class Row(NamedTuple):
    """A row of the manifest."""

    set: str
    name: str
    input: str
    truth: str
    seed: str
    factors: str
    """Fading factors in the order of application, such as ``contrast 0.731 brightness 0.9``."""
    source: str
    source_sha256: str


def read_sets(folder: Path) -> list[BenchmarkSet]:
    """Read the sets of a build, in the paper's order.

    Raises:
        ColorFluxError: if the folder has no manifest or files are missing.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise ColorFluxError(
            f"{path} is missing: build it with python -m colorflux_core.evaluation sets"
        )
    rows = [Row(*row) for row in read_rows(path, Row._fields)]
    sets: dict[str, list[Item]] = {}
    for row in rows:
        truth = folder / row.truth if row.truth else None
        for file in filter(None, (folder / row.input, truth)):
            if not file.is_file():
                raise ColorFluxError(f"{file} is missing: build the sets again")
        sets.setdefault(row.set, []).append(Item(row.name, folder / row.input, truth))
    return [BenchmarkSet(name, tuple(items)) for name, items in sets.items()]


def chosen_sets(sets: Sequence[BenchmarkSet], names: Sequence[str] | None) -> list[BenchmarkSet]:
    """Select sets by name, or all without names; raises ColorFluxError for an unknown name."""
    known = [benchmark.name for benchmark in sets]
    for name in names or []:
        if name not in known:
            raise ColorFluxError(f"--set {name} is not one of the sets {', '.join(known)}")
    return [benchmark for benchmark in sets if not names or benchmark.name in names]
