"""One node at a time, as ComfyUI runs it: defaults from its schema, in inference mode."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

import pytest
import torch

from tests.nodes.pack import NAME, comfyui_path, load_pack, node_classes

EXTRAS = ("nodes_latent.py", "nodes_model_advanced.py")


def run(node_id: str, **inputs: Any) -> tuple[Any, ...]:
    """The outputs of a node, ours or ComfyUI's; inputs that are not given have their defaults."""
    node = node_classes().get(node_id) or stock_classes()[node_id]
    types = node.INPUT_TYPES()
    defaults = {
        name: options[0]["default"]
        for name, (_, *options) in (types["required"] | types.get("optional", {})).items()
        if options and "default" in options[0]
    }
    with torch.inference_mode():
        output = getattr(node(), node.FUNCTION)(**defaults | inputs)
    return output if isinstance(output, tuple) else output.result or ()


@functools.cache
def stock_classes() -> dict[str, Any]:
    """ComfyUI's own nodes by their ids, as far as our workflows use them."""
    nodes = import_module("nodes")
    for name in EXTRAS:
        file = f"{comfyui_path()}/comfy_extras/{name}"
        assert asyncio.run(nodes.load_custom_node(file, module_parent="comfy_extras"))
    return nodes.NODE_CLASS_MAPPINGS


@contextmanager
def refused(*words: str) -> Iterator[None]:
    """Inside, a node refuses what it is given, in one line that has all these words."""
    load_pack()
    with pytest.raises(import_module(f"{NAME}.colorflux_core.errors").ColorFluxError) as caught:
        yield
    message = str(caught.value)
    assert "\n" not in message
    assert not [word for word in words if word not in message], message
