"""Every workflow as it opens from ComfyUI's template browser."""

from __future__ import annotations

import json
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.frontend.server import PACK, RECORD, WORKFLOWS

if TYPE_CHECKING:
    from playwright.sync_api import Page

RECORDED: dict[str, Any] = json.loads(RECORD.read_bytes())

# All on the canvas, as the frontend has it. A title begins right of the node's bullet.
LOADED = """() => {
    const context = app.canvas.ctx;
    const room = (node) => {
        context.font = node.titleFontStyle;
        const width = LiteGraph.NODE_TITLE_HEIGHT + context.measureText(node.getTitle()).width;
        return node.size[0] - width;
    };
    const saved = ({ widgets = [] }) => widgets.filter((widget) => widget.serialize !== false);
    return {
        links: app.graph.serialize().links,
        nodes: Object.fromEntries(app.graph.nodes.map((node) => [node.id, {
            known: node.type in LiteGraph.registered_node_types,
            title: node.getTitle(),
            titleRoom: room(node),
            box: [...node.boundingRect],
            widgets: saved(node).map(({ name, value }) => [name, value]),
        }])),
    };
}"""


def open_template(page: Page, name: str) -> dict[str, Any]:
    """What is on the canvas after a click on the template."""
    page.evaluate("app.extensionManager.command.execute('Comfy.BrowseTemplates')")
    page.get_by_text(PACK, exact=True).click()
    page.get_by_role("heading", name=name, exact=True).click()
    page.wait_for_function("name => document.title.includes(name)", arg=name)
    page.wait_for_function("app.graph.nodes.every((node) => node.boundingRect[2] > 0)")
    loaded: dict[str, Any] = page.evaluate(LOADED)
    return loaded


def specs(node_type: str) -> dict[str, Any]:
    """The recorded inputs of a node, by name."""
    inputs = RECORDED.get(node_type, {}).get("input", {})
    return {**inputs.get("required", {}), **inputs.get("optional", {})}


def fits(value: Any, spec: list[Any]) -> bool:
    """Whether a widget of this kind can hold ``value``; model files need not be there."""
    kind, options, *_ = [*spec, {}]
    match kind:
        case "INT" | "FLOAT":
            return isinstance(value, int | float) and options["min"] <= value <= options["max"]
        case "STRING":
            return isinstance(value, str)
        case "BOOLEAN":
            return isinstance(value, bool)
    choices = options["options"] if kind == "COMBO" else kind
    return value in choices or str(value).endswith(".safetensors")


def overlap(a: list[float], b: list[float]) -> bool:
    """Whether two boxes (x, y, width, height) have a point in common."""
    return all(a[k] < b[k] + b[k + 2] and b[k] < a[k] + a[k + 2] for k in (0, 1))


def test_there_are_workflows() -> None:
    assert WORKFLOWS


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_workflow_opens_whole(page: Page, path: Path) -> None:
    workflow = json.loads(path.read_bytes())
    loaded = open_template(page, path.stem)

    assert sorted(map(tuple, loaded["links"])) == sorted(map(tuple, workflow["links"]))
    assert len(loaded["nodes"]) == len(workflow["nodes"])
    for node in workflow["nodes"]:
        seen = loaded["nodes"][str(node["id"])]
        assert seen["known"], node["type"]
        assert seen["titleRoom"] > 0, seen["title"]
        assert [value for _, value in seen["widgets"]] == node.get("widgets_values", [])
        spec = specs(node["type"])
        for name, value in seen["widgets"]:
            assert name not in spec or fits(value, spec[name]), f"{node['type']}: {name}={value}"

    for a, b in combinations(loaded["nodes"].values(), 2):
        assert not overlap(a["box"], b["box"]), f"{a['title']} lies over {b['title']}"
