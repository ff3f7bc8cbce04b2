"""One node at a time, as ComfyUI runs it: defaults from its schema, in inference mode."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

import pytest
import torch

from tests.pack import NAME, load_pack, node_classes


def run(node_id: str, **inputs: Any) -> tuple[Any, ...]:
    """The outputs of one of our nodes; inputs that are not given have their defaults."""
    node = node_classes()[node_id]
    defaults = _defaults(node.GET_NODE_INFO_V1()["input"])
    with torch.inference_mode():
        return node.EXECUTE_NORMALIZED(**defaults | inputs).result or ()


def stock(node: Any, **inputs: Any) -> tuple[Any, ...]:
    """The outputs of one of ComfyUI's own nodes, given its class."""
    with torch.inference_mode():
        return getattr(node(), node.FUNCTION)(**_defaults(node.INPUT_TYPES()) | inputs)


def _defaults(input_types: dict[str, dict[str, tuple[Any, ...]]]) -> dict[str, Any]:
    given = input_types.get("required", {}) | input_types.get("optional", {})
    return {
        name: options[0]["default"]
        for name, (_, *options) in given.items()
        if options and "default" in options[0]
    }


@contextmanager
def refused(*words: str) -> Iterator[None]:
    """Inside, a node refuses what it is given, in one line that has all these words."""
    load_pack()
    with pytest.raises(import_module(f"{NAME}.colorflux_core.errors").ColorFluxError) as caught:
        yield
    message = str(caught.value)
    assert "\n" not in message
    assert not [word for word in words if word not in message], message
