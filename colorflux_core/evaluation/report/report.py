"""Write a report that compares methods.

A report is one folder:

    report.html       the full report in one self-contained file
    report.md         the tables in the layout of the paper
    scores.csv        the scores the report was made from, one row per image and metric
    table.csv         means with intervals and coverage
    comparisons.csv   each method against the reference
    sheets/SET-1.jpg  results side by side, with zoomed crops
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from tqdm import tqdm

from ...errors import ColorFluxError
from ..benchmark.methods import Method
from ..benchmark.sets import BenchmarkSet
from ..rows import write_file, write_rows
from ..scores import TRUTH, Column, Score, write_scores
from . import table_text
from .report_page import Page, Rationales, Section, most_different_images
from .sheets import INPUT, Strip, contact_sheet, jpeg, strip
from .tables import Block, blocks, compare_rows

SHOWN = 12
"""Images per set in the sheets and the HTML page; each adds about 30 kB per method to the page."""

SHEET_ROWS = 6


def write_report(
    folder: Path,
    scores: Sequence[Score],
    columns: Sequence[Column],
    sets: Sequence[BenchmarkSet],
    methods: Sequence[Method],
    reference: str | None = None,
    facts: Mapping[str, str] | None = None,
    rationales: Rationales | None = None,
    seed: int = 0,
    runs: Mapping[str, str] | None = None,
    shown: int = SHOWN,
) -> None:
    """Write the report; identical scores and files produce identical bytes.

    Args:
        scores: Scores of the methods and of ``truth``. Scores of other sets, methods or metrics
            only go to scores.csv.
        columns: The metrics, in table order.
        reference: The row the others are compared with; by default the first.
        facts: How the scores were made: versions, command, hash of a judge's template.
        rationales: What judges wrote, shown below the images.
        seed: Seed of the bootstrap.
        runs: For methods trained with several seeds: maps each method to the table row it belongs
            to. The images shown are those of a row's first method.
        shown: Images per set to show: a third are the set's first, the others those where the
            methods' scores differ most.

    Raises:
        ColorFluxError: if the reference is not a row, an image of the benchmark cannot be read, or
            the folder cannot be written.
    """
    runs = runs or {}
    pictured: dict[str, Method] = {}
    for method in methods:
        pictured.setdefault(runs.get(method.name, method.name), method)
    if not pictured:
        raise ColorFluxError("a report needs at least one method")
    reference = reference_among([*pictured], reference)
    sections: list[Section] = []
    for block in blocks(scores, columns, sets, [method.name for method in methods], runs, seed):
        strips = [*_strips(block, pictured, shown)]
        sheets = _write_sheets(folder, block.set.name, strips)
        sections.append(Section(block, compare_rows(block, reference, seed), strips, sheets))
    compared = [line for section in sections for line in section.compared]
    page = Page(
        sections,
        columns,
        {row: method.name for row, method in pictured.items()},
        reference,
        {**(facts or {}), "Bootstrap seed": str(seed)},
        rationales or {},
    )
    write_scores(folder / "scores.csv", scores)
    write_rows(
        folder / "table.csv",
        table_text.TABLE,
        table_text.table_rows(section.block for section in sections),
    )
    write_rows(
        folder / "comparisons.csv", table_text.COMPARISONS, table_text.comparison_rows(compared)
    )
    for name in ("report.md", "report.html"):
        write_file(folder / name, page.text(name).encode())


def reference_among(rows: Sequence[str], reference: str | None) -> str:
    """Validate the row names and return the reference, by default the first row.

    Raises:
        ColorFluxError: if the reference is not a row, or a row has a reserved name.
    """
    for name, photos in ((TRUTH, "color"), (INPUT, "gray")):
        if name in rows:
            raise ColorFluxError(f"{name} is reserved for the {photos} photos: rename that method")
    if reference is None:
        return rows[0]
    if reference not in rows:
        raise ColorFluxError(
            f"--reference {reference}: there is no such method; choose one of {', '.join(rows)}"
        )
    return reference


def _strips(block: Block, methods: Mapping[str, Method], count: int) -> Iterator[Strip]:
    results = {row: method.results(block.set) for row, method in methods.items()}
    for index in tqdm(
        most_different_images(block, count), unit="image", desc=f"images of {block.set.name}"
    ):
        item = block.set.items[index]
        yield strip(item, {row: found.get(item.name) for row, found in results.items()}, TRUTH)


def _write_sheets(folder: Path, name: str, strips: Sequence[Strip]) -> list[str]:
    """Write the contact sheets and return their paths relative to the folder."""
    written: list[str] = []
    stem = re.sub(r"[^\w.-]", "_", name)
    for start in range(0, len(strips), SHEET_ROWS):
        sheet = contact_sheet(strips[start : start + SHEET_ROWS])
        written.append(f"sheets/{stem}-{len(written) + 1}.jpg")
        write_file(folder / written[-1], jpeg(sheet, quality=88))
    return written
