"""Tables that say what the scores say, and nothing where they say nothing."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from colorflux_core.evaluation.benchmark.sets import BenchmarkSet, Item
from colorflux_core.evaluation.report.statistics import Interval, mean_interval
from colorflux_core.evaluation.report.table_text import (
    MISSING,
    TABLE,
    comparison_rows,
    difference_decimals,
    escape_markdown,
    markdown_comparisons,
    markdown_table,
    mean_decimals,
    number,
    table_rows,
)
from colorflux_core.evaluation.report.tables import Block, blocks, compare_rows
from colorflux_core.evaluation.scores import TRUTH, Column, Score

RICHNESS = Column("richness", "Richness", "higher", "0-100")
ERROR = Column("error", "Error", "lower")
TONE = Column("tone", "Tone", "truth")
MINUS = "\N{MINUS SIGN}"
COLUMNS = [RICHNESS, ERROR, TONE]


def benchmark(images: int, name: str = "synthesized") -> BenchmarkSet:
    items = (Item(f"photo{index}", Path("input.png"), None) for index in range(images))
    return BenchmarkSet(name, tuple(items))


def scores(
    metric: Column, values: dict[str, list[float]], name: str = "synthesized"
) -> list[Score]:
    return [
        Score(name, method, f"photo{index}", metric.key, value)
        for method, given in values.items()
        for index, value in enumerate(given)
    ]


def one_block(given: list[Score], images: int, methods: str = "AB", **options: object) -> Block:
    [block] = blocks(given, COLUMNS, [benchmark(images)], [*methods], **options)  # type: ignore[arg-type]
    return block


def best(block: Block, column: Column) -> set[str]:
    return {row for row in block.rows if block.cells[row, column.key].is_best}


def test_cells_are_means_with_their_intervals() -> None:
    values = {"A": [60.0, 70, 95], "B": [50.0, 50, 50]}
    block = one_block(scores(RICHNESS, values), 3)
    assert block.cells["A", "richness"].mean == mean_interval(values["A"])
    assert block.cells["B", "richness"].mean == Interval(50, 50, 50)
    assert block.rows == ["A", "B"]
    assert block.columns == [RICHNESS]


@pytest.mark.parametrize(("column", "winner"), [(RICHNESS, "A"), (ERROR, "B")])
def test_the_best_is_the_highest_or_the_lowest(column: Column, winner: str) -> None:
    assert best(one_block(scores(column, {"A": [3.0, 4], "B": [1.0, 2]}), 2), column) == {winner}


def test_the_best_is_closest_to_the_truth_of_each_image_and_never_the_truth() -> None:
    """B has the truth's mean, by errors that cancel; A is closer everywhere."""
    values = {"A": [11.0, 21], "B": [20.0, 10], TRUTH: [10.0, 20]}
    block = one_block(scores(TONE, values), 2)
    assert best(block, TONE) == {"A"}
    assert block.rows == ["A", "B", TRUTH]
    assert block.cells["A", "tone"].distance == 1
    assert block.cells["B", "tone"].distance == 10
    assert math.isnan(block.cells[TRUTH, "tone"].distance)


def test_without_a_truth_none_is_closest() -> None:
    block = one_block(scores(TONE, {"A": [11.0, 21], "B": [20.0, 10]}), 2)
    assert best(block, TONE) == set()
    assert block.rows == ["A", "B"]


def test_alone_or_among_equals_none_is_best() -> None:
    assert best(one_block(scores(ERROR, {"A": [1.0, 2]}), 2, "A"), ERROR) == set()
    assert best(one_block(scores(ERROR, {"A": [1.0, 2], "B": [2.0, 1]}), 2), ERROR) == set()


def test_missing_values_lower_the_coverage_and_not_the_mean() -> None:
    """Of B, one score is missing and two were never made."""
    given = scores(RICHNESS, {"A": [60.0, 70, 80, 90], "B": [50.0, math.nan]})
    block = one_block(given, 4)
    cell = block.cells["B", "richness"]
    assert (cell.mean.mean, cell.present, cell.images) == (50, 1, 4)
    assert not cell.is_covered
    assert "50.00 (1 of 4)" in markdown_table(block, {"richness": 2})
    assert block.cells["A", "richness"].is_covered


def test_no_value_is_a_dash_and_an_empty_cell() -> None:
    block = one_block(scores(RICHNESS, {"A": [1.0, 2], "B": [math.nan, math.nan]}), 2)
    *_, row = markdown_table(block, mean_decimals([block])).splitlines()
    assert row == f"| B | {MISSING} |"
    of_b = dict(zip(TABLE, [*table_rows([block])][1], strict=True))
    assert (of_b["mean"], of_b["low"], of_b["present"], of_b["is_best"]) == ("", "", 0, 0)


def test_metrics_without_scores_are_left_out_but_not_those_that_failed() -> None:
    assert one_block(scores(ERROR, {"A": [1.0, 2]}), 2, "A").columns == [ERROR]
    given = scores(RICHNESS, {"A": [math.nan, math.nan]}) + scores(ERROR, {"A": [1.0, 2]})
    assert set(one_block(given, 2, "A").columns) == {RICHNESS, ERROR}


def test_a_set_without_scores_is_an_empty_block() -> None:
    block = one_block([], 2)
    assert (block.columns, block.cells) == ([], {})
    assert compare_rows(block, "A") == []
    assert markdown_table(block, mean_decimals([block])).count("\n") == 4


def test_sets_have_their_own_blocks_and_strangers_none() -> None:
    given = scores(ERROR, {"A": [1.0]}) + scores(ERROR, {"A": [5.0]}, "real")
    given += scores(ERROR, {"stranger": [9.0]}) + scores(ERROR, {"A": [9.0]}, "strange")
    given += [Score("real", "A", "no photo", "error", 9), Score("real", "A", "photo0", "odd", 9)]
    sets = [benchmark(1), benchmark(1, "real")]
    means = [block.cells["A", "error"].mean.mean for block in blocks(given, COLUMNS, sets, ["A"])]
    assert means == [1, 5]


def test_a_metric_of_the_whole_set_has_no_interval_and_is_not_compared() -> None:
    given = [Score("synthesized", method, "", "error", 20) for method in "AB"]
    block = one_block(given, 1)
    cell = block.cells["A", "error"]
    assert (cell.mean.mean, cell.images, cell.is_covered) == (20, 1, True)
    assert math.isnan(cell.mean.low)
    assert compare_rows(block, "A") == []
    assert block.image_columns == []


def test_seeds_of_one_method_are_one_row() -> None:
    given = scores(RICHNESS, {"A0": [1.0, 2, 3], "A1": [3.0, 4, math.nan], "B": [1.0, 1, 1]})
    block = one_block(given, 3, ["A0", "A1", "B"], runs={"A0": "A", "A1": "A"})  # type: ignore[arg-type]
    assert block.rows == ["A", "B"]
    cell = block.cells["A", "richness"]
    assert cell.mean == mean_interval([[1.0, 2, 3], [3, 4, math.nan]])
    assert (cell.present, cell.images) == (5, 6)
    [compared] = compare_rows(block, "B")
    assert compared.comparison.difference.mean == pytest.approx((2 + 3 + 3) / 3 - 1)
    assert math.isnan(compared.comparison.p)


def test_rows_are_compared_with_the_reference() -> None:
    values = {"A": [1.0, 2, 3], "B": [2.0, 4, 6], "C": [1.0, 1, math.nan], TRUTH: [0.0, 0, 0]}
    compared = compare_rows(one_block(scores(ERROR, values), 3, "ABC"), "B")
    assert [(line.method, line.reference) for line in compared] == [("A", "B"), ("C", "B")]
    first, second = (line.comparison for line in compared)
    assert (first.difference.mean, first.wins, first.losses, first.images) == (-2, 3, 0, 3)
    assert (second.difference.mean, second.images) == (-2, 2)


def test_of_metrics_with_a_truth_the_distances_are_compared() -> None:
    values = {"A": [8.0, 13], "B": [11.0, 11], TRUTH: [10.0, 10]}
    [line] = compare_rows(one_block(scores(TONE, values), 2), "B")
    assert line.comparison.difference.mean == pytest.approx((2 + 3) / 2 - 1)
    assert (line.comparison.wins, line.comparison.losses) == (0, 2)
    text = markdown_comparisons([line], difference_decimals([line]))
    assert "Tone, distance to truth ↓ | A | +1.50" in text


def test_markdown_says_what_the_rows_say() -> None:
    rng = np.random.default_rng(3)
    given = [
        score
        for column, scale in ((RICHNESS, 80), (ERROR, 0.2), (TONE, 3000))
        for score in scores(
            column, {method: [*scale * rng.random(9)] for method in ("A", "B", TRUTH)}
        )
    ]
    block = one_block(given, 9)
    decimals = mean_decimals([block])
    text = markdown_table(block, decimals)
    for row in table_rows([block]):
        cell = dict(zip(TABLE, row, strict=True))
        digits = decimals[str(cell["metric"])]
        mean, half = float(cell["mean"]), (float(cell["high"]) - float(cell["low"])) / 2  # type: ignore[arg-type]
        bold = "**" if cell["is_best"] else ""
        assert f"{bold}{mean:.{digits}f}{bold} ± {half:.{digits}f}" in text
    assert (decimals["richness"], decimals["error"], decimals["tone"]) == (2, 4, 0)
    compared = compare_rows(block, "A")
    text = markdown_comparisons(compared, difference_decimals(compared))
    for line in comparison_rows(compared):
        assert f"{line[8]} : {line[9]} : {line[10]}" in text


def test_decimals_are_shared_by_sets() -> None:
    given = scores(ERROR, {"A": [0.5]}) + scores(ERROR, {"A": [50.0]}, "real")
    made = blocks(given, COLUMNS, [benchmark(1), benchmark(1, "real")], ["A"])
    assert mean_decimals(made) == {"error": 2}


@pytest.mark.parametrize(
    ("value", "shown"),
    [(math.nan, MISSING), (-0.001, "0.00"), (-1.239, f"{MINUS}1.24"), (0.0, "0.00")],
)
def test_numbers(value: float, shown: str) -> None:
    assert number(value, 2) == shown


def test_signs() -> None:
    shown = [number(value, 1, sign=True) for value in (1, 0.01, -0.01, -1)]
    assert shown == ["+1.0", "0.0", "0.0", f"{MINUS}1.0"]


def test_names_stay_in_their_cell() -> None:
    name = "a|b\n*c* <script>alert(1)</script> [x](y) `z` &amp; _"
    assert "|" not in escape_markdown(name).replace("\\|", "")
    assert "\n" not in escape_markdown(name)
    assert "<" not in escape_markdown(name)
    assert r"\*c\*" in escape_markdown(name)
    block = one_block(scores(ERROR, {name: [1.0]}), 1, [name])  # type: ignore[arg-type]
    assert len(markdown_table(block, {"error": 1}).splitlines()) == 3
