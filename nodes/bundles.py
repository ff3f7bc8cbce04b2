"""Finds bundles: the embedded nano, and the folders in ComfyUI's models/colorflux."""

from __future__ import annotations

import os
from pathlib import Path

import folder_paths

from ..colorflux_core.bundles.bundle_config import CONFIG, EMBEDDED_NANO
from ..colorflux_core.errors import ColorFluxError

KIND = "colorflux"
EMBEDDED = "nano (embedded)"


def add_bundle_folder() -> None:
    """Register models/colorflux; extra_model_paths.yaml can add folders as ``colorflux``."""
    folder_paths.add_model_folder_path(KIND, str(Path(folder_paths.models_dir, KIND)))


def bundle_folders() -> dict[str, Path]:
    """Folders that contain a ``colorflux.json``, by display name; nano comes first."""
    found = {
        Path(folder).relative_to(top).as_posix(): Path(folder)
        for top in reversed(folder_paths.get_folder_paths(KIND))
        for folder, _, files in os.walk(top, followlinks=True)
        if CONFIG in files
    }
    return {EMBEDDED: EMBEDDED_NANO, **dict(sorted(found.items()))}


def bundle_folder(name: str) -> Path:
    """A bundle's folder. Raises ColorFluxError if it no longer exists."""
    folders = bundle_folders()
    if name not in folders:
        raise ColorFluxError(
            f"Load ColorFLUX Bundle: there is no {name} in models/{KIND}; "
            f"choose one of: {', '.join(folders)}."
        )
    return folders[name]
