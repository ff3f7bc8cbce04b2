"""Benchmark sets, as in the paper's 5.1, built from any photos; the same in every build.

``synthesized`` is photos in grayscale, ``augmented`` photos that were faded first (4.2.1), ``real``
old photos as they are. A build is one folder:

    sets.csv                       a row for each image: its set, its files, seed and factors
    truth/NAME.png                 the color photos
    synthesized/NAME.png           what is to be colorized
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
    """One image of a set: its name, what is to be colorized and, if known, the color photo."""

    name: str
    input: Path
    truth: Path | None


@dataclass(frozen=True)
class BenchmarkSet:
    name: str
    items: tuple[Item, ...]


class Row(NamedTuple):
    """A line of the manifest."""

    set: str
    name: str
    input: str
    truth: str
    seed: str
    factors: str
    """Of the fading, in the order in which they were applied: ``contrast 0.731 brightness 0.9``."""
    source: str
    source_sha256: str


def read_sets(folder: Path) -> list[BenchmarkSet]:
    """The sets of a build, in the order of the paper.

    Raises ColorFluxError when the folder is no build, or files of it are missing.
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
    """Those of these names, or all. Raises ColorFluxError for a name that is none of theirs."""
    known = [benchmark.name for benchmark in sets]
    for name in names or []:
        if name not in known:
            raise ColorFluxError(f"{name} is none of the sets {', '.join(known)}: --set")
    return [benchmark for benchmark in sets if not names or benchmark.name in names]
