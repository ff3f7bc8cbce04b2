"""What a result's history says about the model and the settings that made it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from ..digest import digest
from ..options import number
from .xmp import Provenance

_SAMPLE = 2**16
_WEIGHTS = {".safetensors", ".pkl", ".pth", ".pt", ".bin", ".gguf", ".sft"}


def provenance(
    action: str, model: Mapping[str, str | Path], *settings: Any, **more: object
) -> Provenance:
    """What to write into results.

    Args:
        action: A past participle, such as "colorized".
        model: The files or folders of its parts, by what they are.
        settings: Dataclasses of settings.
        more: Other settings.
    """
    parts = "; ".join(f"{name} {_described(Path(place))}" for name, place in model.items())
    values = {name: value for options in settings for name, value in _values(options)} | more
    parameters = "; ".join(f"{name}: {_text(value)}" for name, value in values.items())
    return Provenance(action, parts, parameters)


def version(place: Path) -> str:
    """A fingerprint of a model's weights, quick even for large ones.

    It covers each weight file's name and size, and its first and last 64 KiB.
    """
    folder = place if place.is_dir() else place.parent
    files = sorted(place.rglob("*")) if place.is_dir() else [place]
    contents: list[str | bytes] = []
    for path in files:
        if path.is_file() and path.suffix in _WEIGHTS:
            size = path.stat().st_size
            with path.open("rb") as file:
                start = file.read(_SAMPLE)
                file.seek(max(0, size - _SAMPLE))
                contents += [path.relative_to(folder).as_posix(), str(size), start, file.read()]
    return digest(*(part if isinstance(part, bytes) else part.encode() for part in contents))


def _described(place: Path) -> str:
    return f"{place.resolve().name} version {version(place)[:12]}"


def _values(options: Any) -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for option in fields(options):
        value = getattr(options, option.name)
        if is_dataclass(value):
            found += [(f"{option.name} {name}", inner) for name, inner in _values(value)]
        else:
            found.append((option.name, value))
    return found


def _text(value: object) -> str:
    if isinstance(value, bool) or value is None:
        return {True: "on", False: "off", None: "none"}[value]
    return number(value) if isinstance(value, int | float) else str(value)
