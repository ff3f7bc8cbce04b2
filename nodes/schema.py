"""Creates the nodes' schemas."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from comfy_api.latest import io


def schema(**options: Any) -> io.Schema:
    """A schema in the category ColorFLUX; options unknown to this ComfyUI version are dropped."""
    known = {field.name for field in fields(io.Schema)}
    return io.Schema(
        category="ColorFLUX", **{name: value for name, value in options.items() if name in known}
    )
