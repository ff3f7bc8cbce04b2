"""The study's page in a headless browser, against the real command, killed in the middle."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from colorflux_core.evaluation.study.answers import answers_path, read_answers
from colorflux_core.evaluation.study.create import create_study
from colorflux_core.evaluation.study.results import read_responses, win_rates
from colorflux_core.evaluation.study.study import read_study
from tests.browser import launched
from tests.evaluation.study.study_runs import bench, results, serving

if TYPE_CHECKING:
    from playwright.sync_api import Browser, BrowserContext, Page, Response

METHODS = ("ours-flux", "dd-theirs", "old-theirs")
KEYS = {1: "ArrowLeft", -1: "ArrowRight", 0: "ArrowDown"}
RED = """() => ["left", "right"].map(side => {
  const canvas = new OffscreenCanvas(1, 1).getContext("2d");
  canvas.drawImage(document.querySelector(`#${side} .result`), 0, 0, 1, 1);
  return canvas.getImageData(0, 0, 1, 1).data[0];
})"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with launched() as chromium:
        yield chromium


@pytest.fixture
def reds() -> dict[str, dict[str, int]]:
    """How red each method's results for ten images are; the first two methods tie twice."""
    rng = random.Random(0)
    reds = {name: {f"pic-{i}": rng.randrange(20, 250, 10) for i in range(10)} for name in METHODS}
    for image in ("pic-3", "pic-7"):
        reds["dd-theirs"][image] = reds["ours-flux"][image]
    return reds


@pytest.fixture
def study(tmp_path: Path, reds: dict[str, dict[str, int]]) -> Path:
    """20 pairs of flat pictures, half of the photos upright."""
    sizes = {f"pic-{i}": (60, 40) if i % 2 else (40, 60) for i in range(10)}
    methods = results(tmp_path, reds)
    sets = [bench(tmp_path, "real", sizes)]
    create_study(tmp_path / "study", sets, methods, "ours-flux", ties=True)
    return tmp_path / "study"


class Watch:
    """What a page asked for, what came, and what its console complains of."""

    def __init__(self, context: BrowserContext) -> None:
        self.urls: list[str] = []
        self.texts: list[str] = []
        self.complaints: list[str] = []
        self.down = threading.Event()
        context.on("request", lambda request: self.urls.append(request.url))
        context.on("response", self.read)
        context.on("console", lambda message: self.hear(message.text, message.type == "error"))
        context.on("weberror", lambda error: self.complaints.append(str(error.error)))

    def hear(self, text: str, is_error: bool) -> None:
        if is_error and not (self.down.is_set() and "ERR_CONNECTION_REFUSED" in text):
            self.complaints.append(text)

    def read(self, response: Response) -> None:
        self.texts.append(str(response.headers))
        if "image" not in response.headers["content-type"]:
            self.texts.append(response.text())

    def check(self, url: str) -> None:
        assert not self.complaints
        assert all(asked.startswith((url, "data:")) for asked in self.urls)
        everything = "\n".join([*self.urls, *self.texts])
        for name in (*METHODS, "pic-", "real/", "jsonl"):
            assert name not in everything


def await_pair(page: Page, number: int) -> None:
    """Until it can be answered."""
    page.get_by_text(f"Pair {number} of 20").wait_for()
    page.locator("#stage[aria-busy=false]").wait_for()


def enter(page: Page, url: str, name: str) -> None:
    page.goto(url)
    page.get_by_label("Your name or initials").fill(name)
    page.get_by_role("button", name="Start").click()


def prefer_the_redder(page: Page) -> int:
    left, right = page.evaluate(RED)
    return (left > right + 4) - (right > left + 4)


def test_20_pairs_by_keyboard_killed_in_the_middle(
    browser: Browser, study: Path, reds: dict[str, dict[str, int]]
) -> None:
    with browser.new_context(viewport={"width": 1200, "height": 800}) as context:
        watch = Watch(context)
        page = context.new_page()
        with serving(study) as (url, process):
            enter(page, url, "A. B.")
            for number in range(1, 9):
                await_pair(page, number)
                page.keyboard.press(KEYS[prefer_the_redder(page)])
            await_pair(page, 9)
            watch.down.set()
            process.kill()
            process.wait()
        assert len(answers(study, "a-b")) == 8
        page.keyboard.press(KEYS[prefer_the_redder(page)])
        page.get_by_text("Please keep this page open").wait_for()
        with serving(study, int(url.rstrip("/").rpartition(":")[2])) as (again, _):
            assert again == url
            await_pair(page, 10)  # the page saved the ninth by itself
            assert page.locator("#trouble").is_hidden()
            page.keyboard.press(KEYS[prefer_the_redder(page)])
            await_pair(page, 11)
            watch.down.clear()
            page.reload()
            page.get_by_text("Welcome back").wait_for()
            for number in range(11, 21):
                await_pair(page, number)
                page.keyboard.press(KEYS[prefer_the_redder(page)])
            page.get_by_text("Thank you!").wait_for()
            assert "win" not in page.inner_text("body").lower()
        watch.check(url)

    made = read_study(study)
    for rate in win_rates(made, read_responses(study, made)):
        signs = [
            (ours > theirs) - (ours < theirs)
            for ours, theirs in zip(
                reds["ours-flux"].values(), reds[rate.opponent].values(), strict=True
            )
        ]
        expected = [signs.count(1), signs.count(0), signs.count(-1)]
        assert [rate.wins, rate.ties, rate.losses] == expected
        assert rate.rate == (expected[0] + expected[1] / 2) / 10


def answers(study: Path, who: str) -> list[str]:
    schedule = read_study(study).schedule(who)
    return [answer.choice for answer in read_answers(answers_path(study, who), schedule)]


def test_undo_and_two_windows_of_one_participant(browser: Browser, study: Path) -> None:
    with serving(study) as (url, _), browser.new_context() as context:
        watch = Watch(context)
        page, other = context.new_page(), context.new_page()
        enter(page, url, "ab")
        await_pair(page, 1)
        page.keyboard.press("Backspace")  # nothing to undo
        for number, key in ((1, "ArrowLeft"), (2, "b"), (3, "ArrowDown")):
            await_pair(page, number)
            page.keyboard.press(key)
        await_pair(page, 4)
        enter(other, url, "AB")
        await_pair(other, 4)
        page.keyboard.press("Backspace")
        await_pair(page, 3)
        page.get_by_role("button", name="Undo").click()
        await_pair(page, 2)
        assert answers(study, "ab") == ["left"]
        page.keyboard.press("a")
        await_pair(page, 3)
        other.keyboard.press("ArrowRight")  # still at the fourth: nothing is answered by it
        await_pair(other, 3)
        assert answers(study, "ab") == ["left", "left"]
        other.get_by_role("button", name="B is better").click()
        await_pair(other, 4)
        page.keyboard.press("ArrowLeft")  # answered already
        await_pair(page, 4)
        assert answers(study, "ab") == ["left", "left", "right"]
        watch.check(url)


def test_keys_that_are_held_show_and_answer_nothing_twice(browser: Browser, study: Path) -> None:
    with serving(study) as (url, _), browser.new_context() as context:
        page = context.new_page()
        enter(page, url, "ab")
        await_pair(page, 1)
        inputs, stage = page.locator(".input"), page.locator("#stage")
        assert inputs.count() == 2
        opacity = "image => getComputedStyle(image).opacity"
        assert inputs.first.evaluate(opacity) == "0"
        page.keyboard.down(" ")
        assert inputs.first.evaluate(opacity) == inputs.last.evaluate(opacity) == "1"
        page.keyboard.up(" ")
        assert inputs.first.evaluate(opacity) == "0"

        page.locator("#right").hover(position={"x": 30, "y": 20})
        page.keyboard.down("z")
        page.wait_for_timeout(200)
        shown = page.locator(".result").evaluate_all(
            "images => images.map(image => [getComputedStyle(image).transform,"
            " getComputedStyle(image).transformOrigin])"
        )
        assert shown[0] == shown[1]
        transform, origin = shown[0]
        assert float(transform.removeprefix("matrix(").split(",")[0]) >= 3
        assert [float(place[:-2]) for place in origin.split()] == pytest.approx([30, 20], abs=0.1)
        page.keyboard.up("z")
        assert "zoomed" not in str(stage.get_attribute("class"))

        page.keyboard.down("ArrowLeft")
        page.keyboard.down("ArrowLeft")  # repeats
        await_pair(page, 2)
        page.keyboard.down("ArrowLeft")
        page.wait_for_timeout(100)
        assert answers(study, "ab") == ["left"]
        page.keyboard.up("ArrowLeft")
        page.keyboard.press("Control+ArrowLeft")
        assert answers(study, "ab") == ["left"]
        page.get_by_role("button", name="A is better").focus()
        page.keyboard.press("Enter")
        await_pair(page, 3)
        assert answers(study, "ab") == ["left", "left"]


def test_a_phone_on_the_network(browser: Browser, study: Path) -> None:
    with (
        serving(study, host="0.0.0.0") as (url, _),
        browser.new_context(
            viewport={"width": 390, "height": 780}, has_touch=True, is_mobile=True
        ) as context,
    ):
        assert read_study(study).token in url
        watch = Watch(context)
        page = context.new_page()
        page.goto(url)
        page.get_by_label("Your name or initials").fill("ph")
        page.get_by_role("button", name="Start").tap()
        for number, (choice, name) in enumerate(
            [("left", "A is better"), ("right", "B is better"), ("tie", "Equal")], start=1
        ):
            await_pair(page, number)
            boxes = [page.locator(f"#{side}").bounding_box() for side in ("left", "right")]
            upper, lower = (box for box in boxes if box)
            assert (upper["width"], upper["height"]) == (lower["width"], lower["height"])
            assert upper["y"] + upper["height"] <= lower["y"]
            assert lower["width"] > 200
            button = page.get_by_role("button", name=name)
            box = button.bounding_box()
            assert box
            assert box["height"] >= 48
            assert box["y"] + box["height"] <= 780
            button.tap()
            page.get_by_text("Saved", exact=True).wait_for()
            await_pair(page, number + 1)
            assert answers(study, "ph")[-1] == choice
        scrolls = "() => [document.scrollingElement.scrollWidth, innerWidth]"
        width, visible = page.evaluate(scrolls)
        assert width <= visible
        page.get_by_role("button", name="Undo").tap()
        await_pair(page, 3)
        watch.check(url)


def test_a_study_without_ties_has_no_such_button(browser: Browser, tmp_path: Path) -> None:
    methods = results(tmp_path, {"a": {"x": 20}, "b": {"x": 200}})
    sets = [bench(tmp_path, "real", {"x": (30, 20)})]
    create_study(tmp_path / "study", sets, methods, None)
    with serving(tmp_path / "study") as (url, _), browser.new_context() as context:
        page = context.new_page()
        page.goto(f"{url}?who=ab")
        page.get_by_text("Pair 1 of 1").wait_for()
        assert page.get_by_role("button", name="Equal").is_hidden()
        page.locator("#stage[aria-busy=false]").wait_for()
        page.keyboard.press("ArrowDown")
        page.keyboard.press("ArrowRight")
        page.get_by_text("Thank you!").wait_for()
        page.get_by_role("button", name="Undo the last answer").click()
        page.get_by_text("Pair 1 of 1").wait_for()


def test_a_name_that_cannot_be_used_is_told(browser: Browser, study: Path) -> None:
    with serving(study) as (url, _), browser.new_context() as context:
        page = context.new_page()
        enter(page, url, "!?")
        page.get_by_role("alert").filter(has_text="letters and digits").wait_for()
