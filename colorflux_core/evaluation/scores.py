"""Scores and metric columns: the data format shared by metrics, judges and reports."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

from ..errors import ColorFluxError
from .rows import read_rows, write_rows

TRUTH = "truth"
"""Name of the pseudo-method whose results are the color photos themselves. It has the last row of
each table and is never ranked."""

ARROWS = {"higher": "↑", "lower": "↓", "truth": "→"}


@dataclass(frozen=True)
class Column:
    """A metric as a report shows it.

    ``direction`` says which value is best: the highest, the lowest, or the one closest to the
    value of the color photo itself.
    """

    key: str
    title: str
    direction: Literal["higher", "lower", "truth"]
    unit: str = ""
    explanation: str = ""

    @property
    def arrow(self) -> str:
        return ARROWS[self.direction]

    @property
    def heading(self) -> str:
        unit = f" ({self.unit})" if self.unit else ""
        return f"{self.title}{unit} {self.arrow}"


class Score(NamedTuple):
    """The value of one metric for one method's result for one image.

    ``value`` is NaN if the value is missing: no result, an unreadable file, or a judge's reply
    that could not be parsed. ``image`` is empty for metrics of a whole set, such as FID.
    """

    set: str
    method: str
    image: str
    metric: str
    value: float

    @property
    def is_missing(self) -> bool:
        return math.isnan(self.value)


def write_scores(path: Path, scores: Iterable[Score]) -> None:
    """Write a CSV file; a missing value is an empty cell.

    Raises:
        ColorFluxError: if the file cannot be written.
    """
    rows = ((*score[:-1], "" if score.is_missing else repr(score.value)) for score in scores)
    write_rows(path, Score._fields, rows)


def read_scores(path: Path) -> list[Score]:
    """Read a file written by :func:`write_scores`.

    Raises:
        ColorFluxError: if the file is missing or not in that format.
    """
    try:
        scores = [
            Score(set, method, image, metric, float(value or math.nan))
            for set, method, image, metric, value in read_rows(path, Score._fields)
        ]
    except ValueError as error:
        raise ColorFluxError(f"{path} is damaged: {error}") from error
    for score in scores:
        if math.isinf(score.value):
            raise ColorFluxError(f"{path}: {score.metric} of {score.image} is {score.value}")
    return scores
