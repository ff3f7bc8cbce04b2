"""Checkpoints: the complete state of a run in one file, written atomically.

The position in the data and all randomness follow from seed and step (see ``data/order.py``), so
neither is saved. The state is gathered from all devices, so that a run can be resumed on another
number of devices.
"""

from __future__ import annotations

import logging
import shutil
from pathlib import Path
from typing import Any
from zipfile import BadZipFile, ZipFile

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from colorflux_core.cli.flags import flag_of
from colorflux_core.errors import ColorFluxError
from colorflux_core.files import atomic_write, remove_stale

logger = logging.getLogger(__name__)
State = dict[str, Any]


def checkpoints(folder: Path) -> list[Path]:
    """A run's checkpoints, newest first."""
    return sorted((folder / "checkpoints").glob("step-*.pt"), reverse=True)


def save_checkpoint(folder: Path, step: int, state: State, keep: int) -> None:
    """Write a checkpoint atomically, then delete all but the ``keep`` newest.

    Raises ColorFluxError if the disk is full or the file cannot be written; earlier checkpoints are
    then kept.
    """
    path = folder / "checkpoints" / f"step-{step:07}.pt"
    remove_stale(path.parent)
    fix = "make room, then repeat the command with --resume"
    with atomic_write(path, fix=fix, make_folder=True) as unfinished:
        tensors = [leaf for leaf in tree_leaves(state) if isinstance(leaf, Tensor)]
        require_room(path.parent, sum(tensor.nbytes for tensor in tensors))
        with unfinished.open("wb") as file:
            torch.save(state, file)
    # A checkpoint of a later step is damaged: the run was resumed from an earlier one.
    existing = checkpoints(folder)
    index = existing.index(path)
    for other in (*existing[:index], *existing[index + keep :]):
        other.unlink()


def require_room(folder: Path, size: int) -> None:
    """Raises OSError if fewer than ``size`` bytes are free."""
    free = shutil.disk_usage(folder).free
    if free < size:
        raise OSError(f"it needs {size / 2**30:.2f} GiB, {free / 2**30:.2f} GiB are free")


def newest_name(folder: Path) -> str:
    """The newest checkpoint's file name, for messages."""
    return next((path.name for path in checkpoints(folder)), "no earlier checkpoint")


def load_checkpoint(folder: Path) -> State | None:
    """The newest readable checkpoint, or None if the run has no checkpoints.

    Raises ColorFluxError if there are checkpoints and none is readable.
    """
    for path in checkpoints(folder):
        try:
            require_intact(path)
            return torch.load(path, weights_only=True, map_location="cpu")
        except (BadZipFile, EOFError, OSError, RuntimeError, ValueError) as error:
            logger.warning("%s is damaged (%s), trying the previous checkpoint", path, error)
    if checkpoints(folder):
        raise ColorFluxError(
            f"no checkpoint in {folder} can be read: start a new run with another --output"
        )
    return None


def require_intact(path: Path) -> None:
    """Verify the file's checksums, which torch.load ignores. Raises BadZipFile or OSError."""
    with ZipFile(path) as archive:
        damaged = archive.testzip()
    if damaged:
        raise BadZipFile(f"the checksum of {damaged} does not match")


def require_same_settings(saved: State, config: State) -> None:
    """Raises ColorFluxError, naming the first setting that differs from the checkpoint's."""
    for key in sorted(saved.keys() | config.keys()):
        if saved.get(key) != config.get(key) and key == "manifest":  # A digest of the photos.
            raise ColorFluxError(
                "the run to resume was trained on other photos: use its --manifest and photo"
                " limits, or start a new run with another --output"
            )
        if saved.get(key) != config.get(key):
            raise ColorFluxError(
                f"{flag_of(key)} is {config.get(key)}, but the run to resume has {saved.get(key)}:"
                " use that value, or start a new run with another --output"
            )
