"""The arms of the ablations and the tables that compare them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import NamedTuple

from colorflux_core.evaluation.benchmark.methods import Method
from colorflux_core.evaluation.benchmark.sets import BenchmarkSet
from colorflux_core.evaluation.metrics.measure import measure
from colorflux_core.evaluation.metrics.metrics import COLUMNS
from colorflux_core.evaluation.report.report import write_report
from colorflux_core.evaluation.report.table_text import (
    difference_decimals,
    markdown_comparisons,
    markdown_table,
    mean_decimals,
)
from colorflux_core.evaluation.report.tables import Block, blocks, compare_rows
from colorflux_core.evaluation.rows import write_file


@dataclass(frozen=True)
class Arm:
    """A model to compare: the runs that its parts come from."""

    controlnet: str = "structure"
    redux: str | None = "both"
    """None is the base's Redux, before basic color learning."""

    lora: str | None = None
    control_scale: float = 1.0


ARMS = {
    "null_prompt": Arm("null_prompt", "null_redux"),
    "joint": Arm("joint", "joint"),
    "flow": Arm(redux="flow"),
    "distill": Arm(redux="distill"),
    "both": Arm(),
    "sft": Arm(lora="sft"),
    "one_stage": Arm(lora="one_stage"),
    "pro_dpo": Arm(lora="pro_dpo_b"),
    "without_structure": Arm(lora="pro_dpo_b", control_scale=0.0),
    "without_basic_color": Arm(redux=None, lora="pro_dpo_b"),
}

FADED = ("augmented", "real")


class Table(NamedTuple):
    """One table or figure of the paper."""

    sets: tuple[str, ...]
    """The benchmark sets of the paper's table."""

    rows: dict[str, str]
    """Row label -> arm. The last row is the paper's choice, which the others are compared with."""


TABLES = {
    "visual_prompt": Table(FADED, {"Null prompt": "null_prompt", "Visual prompt": "both"}),
    "basic_color": Table(
        ("synthesized",), {"L_FM": "flow", "L_distill": "distill", "L_FM + L_distill": "both"}
    ),
    "fine_color": Table(
        FADED,
        {
            "Without DPO": "both",
            "SFT": "sft",
            "One-stage DPO": "one_stage",
            "Pro-DPO": "pro_dpo",
        },
    ),
    "decoupling": Table(("synthesized",), {"Joint": "joint", "Decoupled": "flow"}),
    "parts": Table(
        FADED,
        {
            "Without structure": "without_structure",
            "Without basic color": "without_basic_color",
            "Without fine color": "both",
            "All three stages": "pro_dpo",
        },
    ),
}
"""Table 2, Table 3, Table 4, and both parts of Figure 5. Joint training uses L_FM alone, and so
does the arm it is compared with."""


def sets_for(arm: str, sets: Sequence[BenchmarkSet]) -> list[BenchmarkSet]:
    """The benchmark sets on which a table shows the arm."""
    shown = {name for table in TABLES.values() if arm in table.rows.values() for name in table.sets}
    return [benchmark for benchmark in sets if benchmark.name in shown]


KEYS = (
    *("colorfulness", "chroma_correlation", "ciede2000"),
    *("luma_distance", "ssim_input", "excess_bleeding"),
)
"""The metrics in tables.md; the reports have all metrics."""


def write_tables(output: Path, sets: Sequence[BenchmarkSet], seeds: int) -> None:
    """Write a report per table to ``output/tables``, and tables.md; an arm's seeds share a row."""
    text = []
    for name, table in TABLES.items():
        row_of = {f"{row}, seed {seed}": row for row in table.rows for seed in range(seeds)}
        methods = [
            Method(f"{row}, seed {seed}", output / f"seed-{seed}" / "results" / arm)
            for row, arm in table.rows.items()
            for seed in range(seeds)
        ]
        chosen = [benchmark for benchmark in sets if benchmark.name in table.sets]
        scores = measure(chosen, methods, output / "metrics.jsonl")
        *_, reference = table.rows
        write_report(
            output / "tables" / name, scores, COLUMNS, chosen, methods, reference, runs=row_of
        )
        keys = [column for column in COLUMNS if column.key in KEYS]
        of_sets = blocks(scores, keys, chosen, [method.name for method in methods], row_of)
        text += [f"## {name}\n\n", *markdown(of_sets, reference)]
    write_file(output / "tables.md", "".join(text).encode())


def markdown(of_sets: Sequence[Block], reference: str) -> Iterator[str]:
    """Each set's table, and the comparison of its rows with the reference row."""
    compared = {block.set.name: compare_rows(block, reference) for block in of_sets}
    digits = mean_decimals(of_sets)
    more_digits = difference_decimals(chain.from_iterable(compared.values()))
    for block in of_sets:
        yield f"{block.set.name}, {len(block.set.items)} images\n\n"
        yield f"{markdown_table(block, digits)}\n"
        if compared[block.set.name]:
            yield f"against {reference}\n\n"
            yield f"{markdown_comparisons(compared[block.set.name], more_digits)}\n"
