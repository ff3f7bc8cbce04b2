"""One folder whose files agree with each other, whatever is missing and whatever it is called."""

from __future__ import annotations

import csv
import math
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from colorflux_core.errors import ColorFluxError
from colorflux_core.evaluation.benchmark.methods import Method
from colorflux_core.evaluation.benchmark.sets import BenchmarkSet, Item
from colorflux_core.evaluation.report.report_page import forest_marks, most_different_images
from colorflux_core.evaluation.report.sheets import INPUT
from colorflux_core.evaluation.report.table_text import MISSING, number
from colorflux_core.evaluation.report.tables import blocks, compare_rows
from colorflux_core.evaluation.scores import TRUTH, Column, Score, read_scores
from tests.evaluation.report.report_runs import COLUMNS, NASTY, NASTY_TOO, Run, report_run

DECIMALS = {"richness": 2, "error": 2, "tone": 2, "fid": 4}


class Parsed(HTMLParser):
    """Tables by class as rows of cells of text; all tags; all addresses."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tables: list[tuple[str, list[list[str]]]] = []
        self.tags: list[str] = []
        self.handlers: list[str] = []
        self.sources: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.handlers += [name for name, _ in attrs if name.startswith("on")]
        self.sources += [str(value) for name, value in attrs if name in ("src", "href", "srcset")]
        if tag == "table":
            self.tables.append((str(dict(attrs).get("class")), []))
        elif tag == "tr":
            self.tables[-1][1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][1][-1].append("")

    def handle_data(self, data: str) -> None:
        if self.tables and self.tables[-1][1] and self.tables[-1][1][-1]:
            self.tables[-1][1][-1][-1] += f" {data.strip()}" if data.strip() else ""

    def rows(self, kind: str) -> list[list[list[str]]]:
        """Of each table of this class, its body."""
        return [
            [[cell.strip() for cell in row] for row in rows[1:]]
            for name, rows in self.tables
            if name == kind
        ]


def read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return report_run(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def folder(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    key = ("synthesized", NASTY, "photo2")
    return run.write(
        tmp_path_factory.mktemp("parent") / "made" / "report",
        facts={"Command": f"run {NASTY}"},
        rationales={key: f"Too red.\n{NASTY_TOO}"},
    )


@pytest.fixture(scope="module")
def page(folder: Path) -> Parsed:
    return Parsed((folder / "report.html").read_text(encoding="utf-8"))


def test_scores_can_be_read_again(run: Run, folder: Path) -> None:
    assert [repr(score) for score in read_scores(folder / "scores.csv")] == [
        repr(score) for score in run.scores
    ]


def test_the_page_and_the_tables_agree(folder: Path, page: Parsed) -> None:
    table = {(row["set"], row["method"], row["metric"]): row for row in read(folder / "table.csv")}
    markdown = (folder / "report.md").read_text(encoding="utf-8")
    headlines = page.rows("headline")
    assert [len(rows) for rows in headlines] == [4, 3]
    for name, rows in zip(("synthesized", "real & <old>"), headlines, strict=True):
        for method, *cells in rows:
            for column, cell in zip(COLUMNS, cells, strict=True):
                row = table[name, method, column.key]
                mean = number(float(row["mean"] or "nan"), DECIMALS[column.key])
                assert cell.split()[0] == mean
                assert mean in markdown
                if row["low"]:
                    half = (float(row["high"]) - float(row["low"])) / 2
                    assert f"± {half:.{DECIMALS[column.key]}f}" in cell
                    assert (
                        f"{mean}** ± {half:.2f}" in markdown or f"{mean} ± {half:.2f}" in markdown
                    )
                covered = row["present"] == row["images"]
                assert (f"{row['present']} of {row['images']}" in cell) != (
                    covered or not row["mean"]
                )


def test_the_page_and_the_comparisons_agree(folder: Path, page: Parsed) -> None:
    compared = read(folder / "comparisons.csv")
    assert {row["reference"] for row in compared} == {"first"}
    assert [row["images"] for row in compared if row["method"] == NASTY] == ["7"] * 5
    cells = [cell for rows in page.rows("forest") for row in rows for cell in row[1:]]
    assert len(cells) == len(compared)
    for row, cell in zip(compared, cells, strict=True):
        assert f"{row['wins']} : {row['ties']} : {row['losses']}" in cell
        assert cell.startswith(
            tuple(number(float(row["difference"]), digits, sign=True) for digits in (1, 2))
        )


def test_every_image_has_its_rows(run: Run, page: Parsed) -> None:
    first, second = page.rows("sortable")
    assert (len(first), len(second)) == (8 * 4, 8 * 3)
    of_photo = {row[1]: row[2:] for row in first if row[0] == "photo2"}
    values = {
        (score.method, score.metric): score.value
        for score in run.scores
        if score.set == "synthesized" and score.image == "photo2"
    }
    for method in ("first", NASTY, NASTY_TOO, TRUTH):
        for column, cell in zip(COLUMNS[:3], of_photo[method], strict=True):
            assert cell == number(values.get((method, column.key), math.nan), 2)


def test_names_and_rationales_are_text_and_nothing_else(folder: Path, page: Parsed) -> None:
    assert page.tags.count("script") == 1
    assert "b" in page.tags and page.handlers == []
    text = (folder / "report.html").read_text(encoding="utf-8")
    assert NASTY not in text and "<img src=http" not in text
    assert "Too red." in text
    markdown = (folder / "report.md").read_text(encoding="utf-8")
    assert "<" not in markdown.replace("< 0.001", "")


def test_the_page_needs_no_other_file(page: Parsed) -> None:
    assert page.sources
    assert all(source.startswith("data:image/jpeg;base64,") for source in page.sources)
    assert "link" not in page.tags and "iframe" not in page.tags


def test_sheets_are_pictures_that_the_markdown_links(folder: Path) -> None:
    sheets = sorted(path.relative_to(folder) for path in folder.glob("sheets/*"))
    assert len(sheets) == 4
    markdown = (folder / "report.md").read_text(encoding="utf-8")
    for sheet in sheets:
        assert f"]({sheet.as_posix()})" in markdown
        with Image.open(folder / sheet) as image:
            assert image.format == "JPEG"
            image.load()


def test_the_same_scores_make_the_same_files(run: Run, folder: Path, tmp_path: Path) -> None:
    key = ("synthesized", NASTY, "photo2")
    again = run.write(
        tmp_path,
        facts={"Command": f"run {NASTY}"},
        rationales={key: f"Too red.\n{NASTY_TOO}"},
    )
    files = {path.relative_to(folder) for path in folder.rglob("*") if path.is_file()}
    assert files == {path.relative_to(again) for path in again.rglob("*") if path.is_file()}
    assert all((folder / file).read_bytes() == (again / file).read_bytes() for file in files)


def test_another_reference_and_fewer_pictures(run: Run, tmp_path: Path) -> None:
    run.write(tmp_path, reference=NASTY, shown=1)
    assert {row["reference"] for row in read(tmp_path / "comparisons.csv")} == {NASTY}
    page = Parsed((tmp_path / "report.html").read_text(encoding="utf-8"))
    assert page.tags.count("article") == 2


@pytest.mark.parametrize("images", [1, 2])
def test_a_single_method_and_image(tmp_path: Path, images: int) -> None:
    run = report_run(tmp_path, images, ("only",))
    run.write(tmp_path / "report")
    assert read(tmp_path / "report" / "comparisons.csv") == []
    table = read(tmp_path / "report" / "table.csv")
    for row in table:
        if row["method"] == "only":
            assert (row["low"] == "") == (images == 1 or row["metric"] == "fid")
    assert {row["is_best"] for row in table} == {"0"}


def test_nothing_but_missing_scores(tmp_path: Path) -> None:
    run = report_run(tmp_path, 2)
    missing = Run(run.sets, run.methods, [Score(*score[:4], math.nan) for score in run.scores])
    missing.write(tmp_path / "report")
    table = read(tmp_path / "report" / "table.csv")
    assert table
    assert {(row["mean"], row["present"]) for row in table} == {("", "0")}
    Run(run.sets, run.methods, []).write(tmp_path / "empty")
    assert read(tmp_path / "empty" / "table.csv") == []
    assert (tmp_path / "empty" / "report.html").read_text("utf-8").count(
        "No method has scores"
    ) == 2


def test_a_set_without_images_and_one_without_any_result(tmp_path: Path) -> None:
    run = report_run(tmp_path, 2, ("only",))
    (tmp_path / "none").mkdir()
    methods = [*run.methods, Method("none", tmp_path / "none")]
    sets = [*run.sets, BenchmarkSet("empty", ())]
    Run(sets, methods, run.scores).write(tmp_path / "report")
    page = Parsed((tmp_path / "report" / "report.html").read_text(encoding="utf-8"))
    assert [row for row in page.rows("headline")[0] if row[0] == "none"] == [
        ["none", *[MISSING] * 4]
    ]


def test_seeds_are_one_row_with_the_first_ones_pictures(tmp_path: Path) -> None:
    run = report_run(tmp_path, 3, ("a0", "b", "a1"))
    rationales = {
        ("synthesized", "a0", "photo1"): "By the first.",
        ("synthesized", "a1", "photo1"): "No",
    }
    run.write(tmp_path / "report", runs={"a0": "a", "a1": "a"}, rationales=rationales)
    table = read(tmp_path / "report" / "table.csv")
    assert {row["method"] for row in table} == {"a", "b", TRUTH}
    [row] = (
        row
        for row in table
        if row["method"] == "a" and row["metric"] == "error" and row["set"] == "synthesized"
    )
    assert row["images"] == "6"
    text = (tmp_path / "report" / "report.html").read_text(encoding="utf-8")
    assert "By the first." in text


@pytest.mark.parametrize(
    ("names", "options", "message"),
    [
        (("a", "b"), {"reference": "c"}, "--reference"),
        ((), {}, "at least one method"),
        (("a", TRUTH), {}, "rename"),
        (("a", INPUT), {}, "rename"),
    ],
)
def test_what_cannot_be_reported_is_told(
    tmp_path: Path, names: tuple[str, ...], options: dict[str, str], message: str
) -> None:
    with pytest.raises(ColorFluxError, match=message):
        report_run(tmp_path, 1, names).write(tmp_path / "report", **options)


def test_a_folder_that_cannot_be_is_told(run: Run, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ColorFluxError, match="file"):
        run.write(tmp_path / "file", shown=1)


def test_telling_images_are_the_first_and_those_that_methods_differ_on() -> None:
    sets = [BenchmarkSet("set", tuple(Item(str(n), Path(), None) for n in range(20)))]
    rng = np.random.default_rng(0)
    scores = [
        Score("set", method, str(n), "error", n + (apart if n in (8, 15) else 0.1) * float(sign))
        for method, sign in (("a", 1), ("b", -1))
        for n in range(20)
        for apart in [5 + rng.random()]
    ]
    [block] = blocks(scores, COLUMNS, sets, ["a", "b"])
    assert most_different_images(block, 3) == [0, 8, 15]
    assert most_different_images(block, 0) == []
    assert most_different_images(block, 99) == [*range(20)]


@pytest.mark.parametrize(("direction", "verdict"), [("higher", "worse"), ("lower", "better")])
def test_right_of_the_middle_is_better(direction: str, verdict: str) -> None:
    column = Column("error", "Error", direction)  # type: ignore[arg-type]
    sets = [BenchmarkSet("set", tuple(Item(str(n), Path(), None) for n in range(5)))]
    scores = [
        Score("set", method, str(n), "error", n + (10 + n % 2) * offset)
        for offset, method in enumerate("ba")
        for n in range(5)
    ]
    [block] = blocks(scores, [column], sets, ["a", "b"])
    compared = compare_rows(block, "a")
    mark = forest_marks(compared)["error", "b"]
    assert mark.verdict == verdict
    assert 0 < mark.low < mark.mean < mark.high < 100
