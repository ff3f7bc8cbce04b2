"""Render the report as HTML and Markdown, with the templates beside this file."""

from __future__ import annotations

import base64
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import jinja2
import numpy as np
from PIL import Image

from ..scores import TRUTH, Column
from . import table_text
from .sheets import INPUT, NO_RESULT, Strip, jpeg
from .statistics import Comparison, over_seeds
from .tables import Block, Compared

ROWS = 200
"""Images per set whose scores are listed on the page; scores.csv has all."""

Rationales = Mapping[tuple[str, str, str], str]
"""What judges wrote, keyed by (set, method, image)."""


@dataclass(frozen=True)
class Section:
    """The report on one set; ``sheets`` are paths relative to the report's folder."""

    block: Block
    compared: list[Compared]
    strips: list[Strip]
    sheets: list[str]


@dataclass(frozen=True)
class Page:
    """The content of the templates; ``methods`` maps each row to the method it shows images of."""

    sections: Sequence[Section]
    columns: Sequence[Column]
    methods: Mapping[str, str]
    reference: str
    facts: Mapping[str, str]
    rationales: Rationales

    def text(self, name: str) -> str:
        """Render ``report.html`` (with HTML escaping) or ``report.md``."""
        compared = (line for section in self.sections for line in section.compared)
        template = _templates().get_template(f"{name}.jinja")
        return template.render(
            page=self,
            digits=table_text.mean_decimals(section.block for section in self.sections),
            compared_digits=table_text.difference_decimals(compared),
        )


def most_different_images(block: Block, count: int) -> list[int]:
    """Select images to show: the set's first third, then those whose scores differ most.

    The difference is the standard deviation over the rows, relative to the metric's mean, summed
    over the metrics.

    Returns:
        Ascending indices of at most ``count`` images.
    """
    total = len(block.set.items)
    rows = [row for row in block.rows if row != TRUTH]
    spread = np.zeros(total)
    for column in block.image_columns:
        of_rows = np.stack([over_seeds(block.values[row, column.key]) for row in rows])
        deviation = np.ma.masked_invalid(of_rows).std(axis=0).filled(0)
        spread += deviation / (deviation.mean() or 1)
    first = range(min(total, -(-count // 3)))
    rest = sorted(range(len(first), total), key=lambda index: (-spread[index], index))
    return sorted([*first, *rest[: max(0, count - len(first))]])


class ImageRow(NamedTuple):
    """The values of one image in one row, for each per-image metric of the block."""

    image: str
    row: str
    values: list[float]


def image_rows(block: Block, count: int) -> Iterator[ImageRow]:
    """Yield the values of the ``count`` images picked by :func:`most_different_images`."""
    values = {key: over_seeds(array) for key, array in block.values.items()}
    for index in most_different_images(block, count):
        for row in block.rows:
            of_row = [float(values[row, column.key][index]) for column in block.image_columns]
            yield ImageRow(block.set.items[index].name, row, of_row)


class ForestMark(NamedTuple):
    """A difference in a forest plot, on a scale from 0 to 100: 50 is none, higher is better."""

    low: float
    mean: float
    high: float
    comparison: Comparison

    @property
    def verdict(self) -> str:
        return "better" if self.low > 50 else "worse" if self.high < 50 else "inconclusive"


def forest_marks(compared: Sequence[Compared]) -> dict[tuple[str, str], ForestMark]:
    """Map (metric, method) to marks; each metric has its own scale."""
    reach: dict[str, float] = {}
    for line in compared:
        farthest = float(np.nanmax(np.abs(line.comparison.difference)))
        reach[line.column.key] = max(reach.get(line.column.key, 0.0), farthest)
    marks = {}
    for line in compared:
        sign = 1 if line.column.direction == "higher" else -1
        scale = sign * 48 / (reach[line.column.key] or 1)
        mean, low, high = (50 + scale * value for value in line.comparison.difference)
        low, high = sorted([low, high])
        marks[line.column.key, line.method] = ForestMark(low, mean, high, line.comparison)
    return marks


def count_verdicts(marks: Mapping[tuple[str, str], ForestMark]) -> dict[str, Counter[str]]:
    """Count for each method the metrics where it is better, worse, or inconclusive."""
    counted: dict[str, Counter[str]] = {}
    for (_, method), mark in marks.items():
        counted.setdefault(method, Counter(better=0, worse=0, inconclusive=0))[mark.verdict] += 1
    return counted


def _templates() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=lambda name: name is not None and name.startswith("report.html"),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals |= {
        "text": table_text,
        "ROWS": ROWS,
        "INPUT": INPUT,
        "NO_RESULT": NO_RESULT,
        "TRUTH": TRUTH,
        "image_rows": image_rows,
        "forest_marks": forest_marks,
        "count_verdicts": count_verdicts,
    }
    environment.filters |= {"data_uri": _data_uri, "markdown": table_text.escape_markdown}
    return environment


def _data_uri(image: Image.Image) -> str:
    return "data:image/jpeg;base64," + base64.b64encode(jpeg(image)).decode()
