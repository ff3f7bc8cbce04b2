"""The recorded nodes are those of today; when they are not: tests/frontend/record.py."""

from __future__ import annotations

import json
from typing import Any

from tests.frontend.record import workflow_types
from tests.frontend.server import RECORD
from tests.nodes.pack import node_classes

RECORDED: dict[str, Any] = json.loads(RECORD.read_bytes())
FIELDS = RECORDED["ColorFlux_Compare"].keys() - {"python_module"}
# No ComfyUI knows these: they are the frontend's own.
NOTES = {"MarkdownNote", "Note", "Reroute"}


def comparable(info: dict[str, Any]) -> dict[str, Any]:
    """``info`` as ComfyUI 0.3.64 tells it, without what differs from machine to machine."""
    info = json.loads(json.dumps(info))
    required = info["input"].get("required", {})
    for models in {"bundle", "lora", "s3diff", "sd_turbo"} & required.keys():
        required[models][1].pop("options", None)
    return {name: value for name, value in info.items() if name in FIELDS}


def test_own_nodes() -> None:
    recorded = {name: info for name, info in RECORDED.items() if name.startswith("ColorFlux_")}
    live = {name: node.GET_NODE_INFO_V1() for name, node in node_classes().items()}
    assert recorded.keys() == live.keys()
    for name in live:
        assert comparable(live[name]) == comparable(recorded[name])


def test_all_that_the_workflows_need() -> None:
    assert workflow_types() - NOTES <= RECORDED.keys()
