"""A bundle on disk: a pipeline folder with a ``colorflux.json``, which is read without weights."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import ColorFluxError
from ..model.settings import Settings
from ..photos.canvas import Canvas

EMBEDDED_NANO = Path(__file__).resolve().parents[2] / "models" / "nano"
FORMAT_VERSION = 1
CONFIG = "colorflux.json"


@dataclass(frozen=True)
class BundleFiles:
    """A bundle's folder and the contents of its ``colorflux.json``."""

    folder: Path
    settings: Settings
    lora: Path | None


def find_bundle(name_or_path: str | Path) -> Path:
    """The folder of a bundle: ``"nano"`` is the embedded one, anything else a path.

    Raises ColorFluxError when there is no bundle.
    """
    folder = EMBEDDED_NANO if str(name_or_path) == "nano" else Path(name_or_path)
    if not (folder / CONFIG).is_file():
        raise ColorFluxError(f"There is no bundle in {folder}: it has no {CONFIG}.")
    return folder


def open_bundle(name_or_path: str | Path) -> BundleFiles:
    """Read ``colorflux.json``. Raises ColorFluxError when it is missing or cannot be read."""
    folder = find_bundle(name_or_path)
    config = _read_config(folder / CONFIG)
    settings = _settings(folder / CONFIG, config.get("settings", {}))
    lora = folder / str(config["lora"]) if config.get("lora") else None
    return BundleFiles(folder, settings, lora)


def _read_config(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ColorFluxError(f"{path} cannot be read: {error}") from error
    version = config.get("format_version") if isinstance(config, dict) else None
    if version != FORMAT_VERSION:
        raise ColorFluxError(
            f"{path} has format_version {version}, and this ColorFLUX reads {FORMAT_VERSION}: "
            "update the older of the two."
        )
    return config


def _settings(path: Path, values: Mapping[str, Any]) -> Settings:
    try:
        return Settings(**{**values, "canvas": Canvas(**values.get("canvas", {}))})
    except (ColorFluxError, TypeError, AttributeError) as error:
        raise ColorFluxError(f"{path} has invalid settings: {error}") from error
