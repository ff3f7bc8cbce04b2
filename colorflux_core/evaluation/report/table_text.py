"""Format tables as Markdown and as CSV rows."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace

from ..scores import Column
from .statistics import Interval
from .tables import Block, Cell, Compared

MISSING = "\N{EN DASH}"


def mean_decimals(blocks: Iterable[Block]) -> dict[str, int]:
    """Decimals per metric, so that the largest mean of any set has four digits, as in the paper."""
    means = ((key, cell.mean.mean) for block in blocks for (_, key), cell in block.cells.items())
    return _decimals(means, digits=4, most=4)


def difference_decimals(compared: Iterable[Compared]) -> dict[str, int]:
    """Decimals per metric, so that the largest difference of any set has three digits."""
    differences = ((line.column.key, line.comparison.difference.mean) for line in compared)
    return _decimals(differences, digits=3, most=5)


def _decimals(figures: Iterable[tuple[str, float]], digits: int, most: int) -> dict[str, int]:
    largest: dict[str, float] = {}
    for key, figure in figures:
        known = abs(figure) if math.isfinite(figure) else 0.0
        largest[key] = max(largest.get(key, 0.0), known)
    return {
        key: min(most, max(0, digits - 1 - math.floor(math.log10(figure)))) if figure else 0
        for key, figure in largest.items()
    }


def number(value: float, decimals: int, *, sign: bool = False) -> str:
    """Format a value with a typographic minus sign; NaN is a dash."""
    if math.isnan(value):
        return MISSING
    text = f"{value:{'+' if sign else ''}.{decimals}f}"
    return re.sub(r"^[+-](?=0\.?0*$)", "", text).replace("-", "\N{MINUS SIGN}")


def half_width(interval: Interval) -> float:
    """Half the width of a confidence interval."""
    return (interval.high - interval.low) / 2


def cell_markdown(cell: Cell, decimals: int) -> str:
    """Format a cell like ``**79.80** ± 1.20 (28 of 30)``: bold if best, coverage if incomplete."""
    text = number(cell.mean.mean, decimals)
    if text == MISSING:
        return text
    text = f"**{text}**" if cell.is_best else text
    if not math.isnan(cell.mean.low):
        text += f" ± {number(half_width(cell.mean), decimals)}"
    if not math.isnan(cell.distance):
        text += f", off by {number(cell.distance, decimals)}"
    return text + ("" if cell.is_covered else f" ({cell.present} of {cell.images})")


def markdown_lines(lines: Iterable[Iterable[str]]) -> str:
    """Format table rows; the first two must be the header and the alignments."""
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def markdown_table(block: Block, decimals: Mapping[str, int]) -> str:
    """Format a block as a Markdown table."""
    lines = [["Method", *(escape_markdown(column.heading) for column in block.columns)]]
    lines.append([":--", *("--:" for _ in block.columns)])
    for row in block.rows:
        cells = (
            cell_markdown(block.cells[row, column.key], decimals[column.key])
            for column in block.columns
        )
        lines.append([escape_markdown(row), *cells])
    return markdown_lines(lines)


def markdown_comparisons(compared: Iterable[Compared], decimals: Mapping[str, int]) -> str:
    """Format paired comparisons as a Markdown table."""
    lines = [["Metric", "Method", "Difference", "95 % interval", "Wins : ties : losses", "p"]]
    lines.append([":--", ":--", "--:", ":-:", ":-:", "--:"])
    for _, column, method, _, result in compared:
        digits = decimals[column.key]
        low, high = (
            number(bound, digits, sign=True)
            for bound in (result.difference.low, result.difference.high)
        )
        lines.append(
            [
                escape_markdown(compared_heading(column)),
                escape_markdown(method),
                number(result.difference.mean, digits, sign=True),
                MISSING if low == MISSING else f"{low} … {high}",
                f"{result.wins} : {result.ties} : {result.losses}",
                p_value(result.p),
            ]
        )
    return markdown_lines(lines)


def compared_heading(column: Column) -> str:
    """Heading of a compared metric; for metrics with a truth, the distance to it is compared."""
    if column.direction == "truth":
        column = replace(column, title=f"{column.title}, distance to truth", direction="lower")
    return column.heading


def p_value(p: float) -> str:
    """Format a p-value with three decimals."""
    return "< 0.001" if p < 0.001 else number(p, 3)


def escape_markdown(text: str) -> str:
    """Escape text for a single Markdown line, including HTML."""
    text = " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;")
    return re.sub(r"([\\`*_\[\]|~$])", r"\\\1", text)


TABLE = (
    *("set", "method", "metric", "mean", "low", "high"),
    *("images", "present", "distance_to_truth", "is_best"),
)


def table_rows(blocks: Iterable[Block]) -> Iterator[list[object]]:
    """Yield the columns ``TABLE`` of each cell at full precision; a missing value is empty."""
    for block in blocks:
        for (row, key), cell in block.cells.items():
            figures = (*cell.mean, cell.images, cell.present, cell.distance, int(cell.is_best))
            yield [block.set.name, row, key, *map(_or_empty, figures)]


COMPARISONS = (
    *("set", "metric", "method", "reference", "images", "difference", "low", "high"),
    *("wins", "ties", "losses", "p"),
)


def comparison_rows(compared: Iterable[Compared]) -> Iterator[list[object]]:
    """Yield the columns ``COMPARISONS`` at full precision; a missing value is empty."""
    for set, column, method, reference, result in compared:
        figures = (result.images, *result.difference, result.wins, result.ties, result.losses)
        named = (set, column.key, method, reference)
        yield [*named, *map(_or_empty, (*figures, result.p))]


def _or_empty(figure: float) -> float | str:
    return "" if math.isnan(figure) else figure
