"""Which method colorizes better, said and shown.

A report is one folder:

    report.html       everything, in one file that needs no other and no network
    report.md         the tables in the paper's form
    scores.csv        what it was made from, a row for each image
    table.csv         the means with their intervals and coverage
    comparisons.csv   every method against the reference
    sheets/SET-1.jpg  pictures side by side, with zoomed crops
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
"""Images of each set in the sheets and the page, where each takes about 30 kB a method."""

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
    """Write all of the report; the same scores and files give the same bytes.

    Args:
        scores: Of these sets, methods and ``truth``; those of other sets, methods or metrics are
            kept in scores.csv only.
        columns: The metrics, in the order of the tables.
        reference: The row that all others are compared with; the first, if not given.
        facts: How the scores were made: versions, command, hash of a judge's template.
        seed: Of the bootstrap.
        runs: For methods that are seeds of one: by the method's name, the row it is a part of.
            The pictures are those of a row's first method.
        shown: Images of each set with pictures: a third are the set's first, the others those for
            which the methods' scores differ most.

    Raises:
        ColorFluxError: when the reference is none of the rows, an image of the benchmark cannot be
            read, or the folder cannot be written.
    """
    runs = runs or {}
    pictured: dict[str, Method] = {}
    for method in methods:
        pictured.setdefault(runs.get(method.name, method.name), method)
    if not pictured:
        raise ColorFluxError("there is no method to report on: give at least one")
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
    """The row that others are compared with, by default the first.

    Raises ColorFluxError when it is none of the rows, or a row has the name of the photos.
    """
    for name, photos in ((TRUTH, "color"), (INPUT, "gray")):
        if name in rows:
            raise ColorFluxError(
                f"{name} is what the {photos} photos are called: rename that method"
            )
    if reference is None:
        return rows[0]
    if reference not in rows:
        raise ColorFluxError(
            f"{reference} cannot be the reference, it is not among the methods"
            f" {', '.join(rows)}: choose one with --reference"
        )
    return reference


def _strips(block: Block, methods: Mapping[str, Method], count: int) -> Iterator[Strip]:
    results = {row: method.results(block.set) for row, method in methods.items()}
    for index in tqdm(
        most_different_images(block, count), unit="image", desc=f"pictures {block.set.name}"
    ):
        item = block.set.items[index]
        yield strip(item, {row: found.get(item.name) for row, found in results.items()}, TRUTH)


def _write_sheets(folder: Path, name: str, strips: Sequence[Strip]) -> list[str]:
    """The files, relative to the folder."""
    written: list[str] = []
    stem = re.sub(r"[^\w.-]", "_", name)
    for start in range(0, len(strips), SHEET_ROWS):
        sheet = contact_sheet(strips[start : start + SHEET_ROWS])
        written.append(f"sheets/{stem}-{len(written) + 1}.jpg")
        write_file(folder / written[-1], jpeg(sheet, quality=88))
    return written
