"""The slider of Compare Photos, as it is seen and handled."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any, Literal

import pytest
from PIL import Image

from tests.frontend.server import PROMPT, Frontend

if TYPE_CHECKING:
    from playwright.sync_api import FloatRect, Locator, Page

GRAY, RED, BLUE = (128, 128, 128), (192, 0, 0), (0, 0, 192)
NODE = (53, 53, 53)
STAGE = ".colorflux-compare [role=slider]"


@pytest.fixture
def compare(page: Page, frontend: Frontend) -> Compare:
    page.evaluate("app.graph.clear()")
    page.locator(STAGE).wait_for(state="detached")
    page.evaluate(
        """() => {
            const node = LiteGraph.createNode("ColorFlux_Compare");
            node.pos = [300, 100];
            app.graph.add(node);
            app.canvas.ds.reset();
        }"""
    )
    return Compare(page, frontend)


class Compare:
    """One Compare Photos in the graph."""

    def __init__(self, page: Page, frontend: Frontend) -> None:
        self.page = page
        self.frontend = frontend
        self.stage: Locator = page.locator(STAGE)

    def run(
        self, befores: list[str], afters: list[str], then: Literal["visible", "hidden"] = "visible"
    ) -> None:
        """Presses Run, tells what ComfyUI would, and waits for the slider to be ``then``."""
        sides = {"a_images": befores, "b_images": afters}
        output = {
            side: [{"filename": name, "subfolder": "", "type": "temp"} for name in names]
            for side, names in sides.items()
        }
        self.page.evaluate("app.queuePrompt(0)")
        node = self.page.evaluate("String(app.graph.nodes[0].id)")
        message = {"node": node, "display_node": node, "prompt_id": PROMPT, "output": output}
        self.frontend.send("executed", message)
        self.stage.wait_for(state=then)

    def shows(self, *colors: tuple[int, int, int]) -> bool:
        """Whether these colors are seen from left to right, now or soon."""
        for _ in range(100):
            picture = Image.open(io.BytesIO(self.stage.screenshot())).convert("RGB")
            step, y = picture.width / len(colors), picture.height // 4
            seen = [picture.getpixel((int((k + 0.5) * step), y)) for k in range(len(colors))]
            if seen == list(colors):
                return True
            self.page.wait_for_timeout(20)
        return False

    def box(self) -> FloatRect:
        box = self.stage.bounding_box()
        assert box is not None
        return box

    def at(self, share: float) -> tuple[float, float]:
        """The point at a share of the picture's width."""
        box = self.box()
        return box["x"] + share * box["width"], box["y"] + box["height"] / 2

    def value(self) -> int:
        return int(self.stage.get_attribute("aria-valuenow") or -1)


def test_before_is_left_and_after_right(compare: Compare) -> None:
    compare.run(["gray.png"], ["red.png"])
    assert compare.shows(GRAY, RED)
    assert compare.stage.inner_text().split() == ["before", "after"]


def test_mouse_drags_and_does_not_hover(compare: Compare) -> None:
    compare.run(["gray.png"], ["red.png"])
    mouse = compare.page.mouse
    mouse.move(*compare.at(0.5))
    mouse.down()
    mouse.move(*compare.at(0.9))
    assert compare.shows(GRAY, GRAY)
    mouse.up()
    mouse.move(*compare.at(0.1))
    assert compare.value() == 90
    mouse.click(*compare.at(0.1))
    assert compare.shows(RED, RED)
    mouse.click(*compare.at(0.5), button="right")
    assert compare.value() == 10
    assert compare.page.evaluate("[...app.graph.nodes[0].pos]") == [300, 100]


def test_finger_drags(compare: Compare) -> None:
    compare.run(["gray.png"], ["red.png"])
    touch = compare.page.context.new_cdp_session(compare.page)

    def finger(event: str, *shares: float) -> None:
        points = [dict(zip("xy", compare.at(share), strict=True)) for share in shares]
        touch.send("Input.dispatchTouchEvent", {"type": event, "touchPoints": points})

    finger("touchStart", 0.5)
    finger("touchMove", 0.2)
    finger("touchEnd")
    assert compare.value() == 20
    assert compare.shows(RED, RED)


def test_keys(compare: Compare) -> None:
    compare.run(["gray.png"], ["red.png"])
    compare.page.evaluate(
        "leaked = []; addEventListener('keydown', (event) => leaked.push(event.key))"
    )
    values = []
    for key in ("ArrowRight", "ArrowUp", "ArrowLeft", "End", "ArrowRight", "Home", "ArrowLeft"):
        compare.stage.press(key)
        values.append(compare.value())
    assert values == [55, 60, 55, 100, 100, 0, 0]
    assert compare.page.evaluate("leaked") == []
    assert compare.shows(RED, RED)


def test_wheel_zooms_the_canvas(compare: Compare) -> None:
    compare.run(["gray.png"], ["red.png"])
    compare.stage.hover()
    compare.page.mouse.wheel(0, -100)
    compare.page.wait_for_function("app.canvas.ds.scale > 1")


def test_batch_with_one_picture_for_all(compare: Compare) -> None:
    frames = compare.page.locator(".colorflux-compare .frames")
    compare.run(["gray.png"], ["red.png"])
    assert not frames.is_visible()

    compare.run(["gray.png"], ["red.png", "blue.png"])
    frames.get_by_text("1 / 2").wait_for()
    assert compare.shows(GRAY, RED)
    for button, then, color in (
        ("next", "2 / 2", BLUE),
        ("next", "1 / 2", RED),
        ("previous", "2 / 2", BLUE),
    ):
        frames.get_by_label(button).click()
        frames.get_by_text(then).wait_for()
        assert compare.shows(GRAY, color)

    compare.run(["gray.png"], ["red.png"])
    assert compare.shows(GRAY, RED)


@pytest.mark.parametrize("size", [(360, 360), (800, 300), (250, 700)])
def test_proportions_stay_when_the_node_is_resized(compare: Compare, size: tuple[int, int]) -> None:
    compare.run(["gray.png"], ["red.png"])
    compare.page.evaluate("size => app.graph.nodes[0].setSize(size)", list(size))
    compare.page.evaluate("app.canvas.setDirty(true, true)")
    compare.page.wait_for_timeout(200)
    box = compare.box()
    assert box["width"] / box["height"] == pytest.approx(80 / 60, rel=0.01)
    spare = size[0] - box["width"], size[1] - box["height"]
    assert min(spare) > 0
    assert spare[0] < 40 or spare[1] < 120


def test_another_shape_is_letterboxed(compare: Compare) -> None:
    compare.run(["gray.png"], ["tall.png"])
    compare.stage.press("Home")
    assert compare.shows(NODE, RED, NODE)


def test_vanished_pictures_are_not_shown(compare: Compare) -> None:
    compare.run(["gray.png"], ["red.png"])
    compare.run(["broken.png"], ["red.png"], then="hidden")
    compare.run(["gray.png"], ["blue.png"])
    assert compare.shows(GRAY, BLUE)


def test_workflows_and_prompts_know_nothing_of_it(compare: Compare) -> None:
    compare.run(["gray.png"], ["red.png"])
    saved: dict[str, Any] = compare.page.evaluate("app.graphToPrompt()")
    assert saved["workflow"]["nodes"][0].get("widgets_values", []) == []
    assert [node["inputs"] for node in saved["output"].values()] == [{}]


def test_result_is_there_when_the_tab_is_opened_again(compare: Compare) -> None:
    compare.run(["gray.png"], ["red.png"])
    tabs = compare.page.locator(".workflow-tabs .p-togglebutton")
    old = tabs.count() - 1
    compare.page.evaluate("app.extensionManager.command.execute('Comfy.NewBlankWorkflow')")
    compare.stage.wait_for(state="detached")
    tabs.nth(old).click()
    compare.stage.wait_for()
    assert compare.shows(GRAY, RED)
