"""Creates the nodes' schemas."""

from __future__ import annotations

import math
from dataclasses import fields
from typing import Any

from comfy_api.latest import io

from ..colorflux_core.options import Options, settings


def schema(**options: Any) -> io.Schema:
    """A schema in the category ColorFLUX; options unknown to this ComfyUI version are dropped."""
    known = {field.name for field in fields(io.Schema)}
    return io.Schema(
        category="ColorFLUX", **{name: value for name, value in options.items() if name in known}
    )


def from_setting(options: type[Options], name: str, **changes: Any) -> dict[str, Any]:
    """A setting's default, range and help text, as keyword arguments of an input.

    ``changes`` are further arguments, and those that differ: ComfyUI's sliders need both limits.
    """
    setting = settings(options)[name]
    allowed = setting.metadata["range"]
    number: type[Any] = type(setting.default)
    limits = {"min": allowed.low, "max": allowed.high}
    return {
        "default": setting.default,
        **{key: number(value) for key, value in limits.items() if math.isfinite(value)},
        **({"step": allowed.multiple_of} if allowed.multiple_of else {}),
        "tooltip": tooltip(options, name),
        **changes,
    }


def tooltip(options: type[Options], name: str) -> str:
    """A setting's help text as a sentence."""
    text: str = settings(options)[name].metadata["help"]
    return f"{text[0].upper()}{text[1:]}."
