"""The page in a headless browser: offline, quiet, and readable on a phone."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from colorflux_core.evaluation.report.table_text import MISSING
from tests.browser import launched
from tests.evaluation.report.report_runs import NASTY, report_run

if TYPE_CHECKING:
    from playwright.sync_api import Browser, BrowserContext, Page

FIRST_PLATE = ".plate >> nth=0"


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("page")
    rationales = {("synthesized", "first", "photo1"): f"Too red. {NASTY}"}
    return report_run(folder, 5).write(folder / "report", rationales=rationales) / "report.html"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with launched() as chromium:
        yield chromium


def opened(context: BrowserContext, report: Path, complaints: list[str]) -> Page:
    page = context.new_page()
    page.set_default_timeout(20_000)
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("dialog", lambda dialog: complaints.append(dialog.message))
    page.on(
        "request",
        lambda request: (
            complaints.append(request.url)
            if not request.url.startswith(("data:", report.as_uri()))
            else None
        ),
    )
    page.goto(report.as_uri())
    return page


@pytest.fixture
def page(browser: Browser, report: Path) -> Iterator[Page]:
    """That the page asks for nothing and complains of nothing is part of each test."""
    complaints: list[str] = []
    context = browser.new_context(viewport={"width": 1400, "height": 900})
    yield opened(context, report, complaints)
    context.close()
    assert complaints == []


def column(page: Page, number: int) -> list[str]:
    cells = page.locator(f".sortable >> nth=0 >> tbody tr > :nth-child({number})")
    return cells.all_text_contents()


def test_rows_are_sorted_and_what_is_missing_stays_last(page: Page) -> None:
    page.locator(".rows summary").first.click()
    before = column(page, 3)
    assert MISSING in before
    head = page.locator(".sortable >> nth=0 >> th:nth-child(3)")
    for order in ("descending", "ascending"):
        head.locator("button").click()
        assert head.get_attribute("aria-sort") == order
        shown = column(page, 3)
        values = [float(value) for value in shown if value != MISSING]
        assert values == sorted(values, reverse=order == "descending")
        assert shown == [*map("{:.2f}".format, values), *[MISSING] * before.count(MISSING)]
    page.locator(".sortable >> nth=0 >> th:nth-child(2) >> button").click()
    assert len([*groupby(column(page, 2))]) == 4


def test_sets_are_filtered(page: Page) -> None:
    headings = page.locator("section[data-set] > h2")
    page.get_by_role("button", name="real & <old>").click()
    assert [headings.nth(index).is_visible() for index in range(2)] == [False, True]
    page.get_by_role("button", name="All sets").click()
    assert [headings.nth(index).is_visible() for index in range(2)] == [True, True]


def test_pointing_at_a_result_shows_the_input(page: Page) -> None:
    plate = page.locator(FIRST_PLATE)
    given = plate.locator("figure.input img").first.get_attribute("src")
    figure = plate.locator("figure").nth(1)
    image = figure.locator("img").first
    result = image.get_attribute("src")
    assert result != given
    figure.locator(".frame").hover()
    assert image.get_attribute("src") == given
    page.mouse.move(0, 0)
    assert image.get_attribute("src") == result
    page.keyboard.press("Tab")
    figure.locator(".frame").focus()
    assert image.get_attribute("src") == given


def test_pictures_are_of_one_height_and_the_crop_is_within(page: Page) -> None:
    plate = page.locator(FIRST_PLATE)
    boxes = [frame.bounding_box() for frame in plate.locator(".frame").all()]
    assert len({round(box["height"]) for box in boxes if box}) == 1
    outline, frame = plate.locator(".frame i").first.bounding_box(), boxes[0]
    assert outline and frame
    assert outline["x"] >= frame["x"] - 1
    assert outline["x"] + outline["width"] <= frame["x"] + frame["width"] + 1


@pytest.mark.parametrize("width", [320, 390, 1400])
def test_the_page_itself_never_scrolls_sideways(page: Page, width: int) -> None:
    page.set_viewport_size({"width": width, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth") == width
    head = page.locator(".headline tbody th").first
    table = page.locator(".wide").first
    table.evaluate("table => table.scrollLeft = 9999")
    left, of_table = head.bounding_box(), table.bounding_box()
    assert left and of_table and abs(left["x"] - of_table["x"]) < 1


def test_dark_and_light_differ_and_both_are_readable(browser: Browser, report: Path) -> None:
    complaints: list[str] = []
    contrasts = {}
    for scheme in ("light", "dark"):
        context = browser.new_context(color_scheme=scheme)  # type: ignore[arg-type]
        page = opened(context, report, complaints)
        style = "getComputedStyle(document.querySelector('{}')).{}"
        colors = [
            page.evaluate(style.format(*place))
            for place in (("body", "backgroundColor"), ("body", "color"), (".lead", "color"))
        ]
        contrasts[scheme] = [luminance(color) for color in colors]
        context.close()
    assert complaints == []
    assert contrasts["light"][0] > 0.9 and contrasts["dark"][0] < 0.05
    for paper, *inks in contrasts.values():
        for ink in inks:
            assert (max(paper, ink) + 0.05) / (min(paper, ink) + 0.05) >= 4.5


def luminance(color: str) -> float:
    """Relative luminance of ``rgb(r, g, b)`` as WCAG 2 has it."""
    levels = (int(level) / 255 for level in color[4:-1].split(","))
    linear = [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in levels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_without_javascript_all_of_it_can_be_read(browser: Browser, report: Path) -> None:
    complaints: list[str] = []
    context = browser.new_context(java_script_enabled=False)
    page = opened(context, report, complaints)
    assert page.locator("nav").is_hidden()
    assert page.locator(".headline").count() == page.locator(".headline:visible").count() == 2
    page.locator(".rows summary").first.click()
    assert page.locator(".sortable").first.is_visible()
    page.locator("figure summary").first.click()
    assert page.get_by_text(f"Too red. {NASTY}").is_visible()
    context.close()
    assert complaints == []
