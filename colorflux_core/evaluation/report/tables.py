"""Tables of scores like the paper's Table 1: a block per set, a row per method."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from ..benchmark.sets import BenchmarkSet
from ..scores import TRUTH, Column, Score
from .statistics import Comparison, Interval, Values, compare, mean_interval, mean_of


class Cell(NamedTuple):
    """One metric of one row on one set."""

    mean: Interval
    images: int
    """Number of values expected: the images of the set times the seeds."""

    present: int
    """Number of values that are not missing."""

    distance: float
    """Mean distance to the truth of the same image, for metrics with that direction; else NaN."""

    is_best: bool

    @property
    def is_covered(self) -> bool:
        return self.present == self.images


@dataclass(frozen=True)
class Block:
    """The table of one set, with the metrics for which any row has a value.

    ``values`` and ``cells`` are keyed by (row, metric): an array (seeds, images), with images in
    the set's order, and its table cell. Metrics in ``of_set`` have a single value for the set,
    (seeds, 1).
    """

    set: BenchmarkSet
    columns: list[Column]
    rows: list[str]
    values: dict[tuple[str, str], Values]
    cells: dict[tuple[str, str], Cell]
    of_set: frozenset[str]

    @property
    def image_columns(self) -> list[Column]:
        return [column for column in self.columns if column.key not in self.of_set]


class Compared(NamedTuple):
    """A paired comparison of two rows; for metrics with a truth, of the distances to it."""

    set: str
    column: Column
    method: str
    reference: str
    comparison: Comparison


def blocks(
    scores: Iterable[Score],
    columns: Sequence[Column],
    sets: Sequence[BenchmarkSet],
    methods: Sequence[str],
    runs: Mapping[str, str] | None = None,
    seed: int = 0,
) -> list[Block]:
    """Build a block for each set, ignoring scores of other sets, methods, images and metrics.

    Args:
        runs: For methods trained with several seeds: maps each method to the row it belongs to.
        seed: Seed of the bootstrap.
    """
    runs = runs or {}
    members: dict[str, list[str]] = {}
    for method in methods:
        members.setdefault(runs.get(method, method), []).append(method)
    members[TRUTH] = [TRUTH]
    found: dict[tuple[str, str], dict[tuple[str, str], float]] = {}
    for score in scores:
        of_metric = found.setdefault((score.set, score.metric), {})
        of_metric[score.method, score.image] = score.value
    return [
        _block(
            benchmark,
            {column: found.get((benchmark.name, column.key), {}) for column in columns},
            members,
            seed,
        )
        for benchmark in sets
    ]


def _block(
    benchmark: BenchmarkSet,
    found: Mapping[Column, Mapping[tuple[str, str], float]],
    members: Mapping[str, Sequence[str]],
    seed: int,
) -> Block:
    """Build one block from the values of each column, keyed by (method, image)."""
    found = {column: given for column, given in found.items() if given}
    methods = {method for given in found.values() for method, _ in given}
    rows = [row for row in members if row != TRUTH or TRUTH in methods]
    names = [item.name for item in benchmark.items]
    values: dict[tuple[str, str], Values] = {}
    cells: dict[tuple[str, str], Cell] = {}
    of_set = set()
    for column, given in found.items():
        images = names
        if any(not image for _, image in given):
            images = [""]
            of_set.add(column.key)
        arrays = {
            row: np.array(
                [
                    [given.get((method, image), math.nan) for image in images]
                    for method in members[row]
                ]
            )
            for row in rows
        }
        values |= {(row, column.key): array for row, array in arrays.items()}
        cells |= {(row, column.key): cell for row, cell in _cells(arrays, column, seed).items()}
    return Block(benchmark, [*found], rows, values, cells, frozenset(of_set))


def _cells(values: Mapping[str, Values], column: Column, seed: int) -> dict[str, Cell]:
    intervals = {row: mean_interval(array, seed) for row, array in values.items()}
    distances = (
        {row: mean_of(array) for row, array in ranked(values, column).items()}
        if column.direction == "truth"
        else {}
    )
    figure_of_merit = distances or {row: interval.mean for row, interval in intervals.items()}
    present = {row: int((~np.isnan(array)).sum()) for row, array in values.items() if row != TRUTH}
    # A row with fewer images is not ranked, because they may be the easy ones.
    competing = {
        row: figure_of_merit[row]
        for row, images in present.items()
        if images == max(present.values()) and not math.isnan(figure_of_merit[row])
    }
    choose = max if column.direction == "higher" else min
    best = choose(competing.values()) if len({*competing.values()}) > 1 else None
    return {
        row: Cell(
            mean=intervals[row],
            images=array.size,
            present=int((~np.isnan(array)).sum()),
            distance=distances.get(row, math.nan) if row != TRUTH else math.nan,
            is_best=best is not None and competing.get(row) == best,
        )
        for row, array in values.items()
    }


def ranked(values: Mapping[str, Values], column: Column) -> dict[str, Values]:
    """The figures that methods are ranked by: the values, or their distances to the truth."""
    if column.direction != "truth":
        return dict(values)
    truth = values.get(TRUTH, np.full((1, 1), math.nan))
    return {row: np.abs(array - truth) for row, array in values.items()}


def compare_rows(block: Block, reference: str, seed: int = 0) -> list[Compared]:
    """Compare every row except the truth with the reference, by each per-image metric."""
    compared: list[Compared] = []
    for column in block.image_columns:
        of_column = {row: block.values[row, column.key] for row in block.rows}
        figures = ranked(of_column, column)
        for row in block.rows:
            if row in (reference, TRUTH):
                continue
            result = compare(
                figures[row],
                figures[reference],
                higher_is_better=column.direction == "higher",
                seed=seed,
            )
            if result.images:
                compared.append(Compared(block.set.name, column, row, reference, result))
    return compared
