"""Checkpoints: the whole state of a run, in one file that is complete or not there at all.

Besides what is saved, seed and step say everything: which rows come next and what is random in
them (see ``order``). The state is gathered from all devices, so that one device can go on from the
checkpoint of many.
"""

from __future__ import annotations

import logging
import os
import shutil
from pathlib import Path
from typing import Any
from zipfile import BadZipFile, ZipFile

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from colorflux_core.cli.flags import flag_of
from colorflux_core.errors import ColorFluxError

logger = logging.getLogger(__name__)
State = dict[str, Any]


def checkpoints(folder: Path) -> list[Path]:
    """A run's checkpoints, the newest first."""
    return sorted((folder / "checkpoints").glob("step-*.pt"), reverse=True)


def save_checkpoint(folder: Path, step: int, state: State, keep: int) -> None:
    """Write a checkpoint, put it in place, and only then drop all but the ``keep`` newest.

    Raises ColorFluxError when there is no room for it or it cannot be written; the checkpoints that
    are there stay.
    """
    path = folder / "checkpoints" / f"step-{step:07}.pt"
    unfinished = path.with_suffix(".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        require_room(
            path.parent, sum(leaf.nbytes for leaf in tree_leaves(state) if isinstance(leaf, Tensor))
        )
        with unfinished.open("wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)
    except (OSError, RuntimeError) as error:
        unfinished.unlink(missing_ok=True)
        raise ColorFluxError(
            f"the checkpoint of step {step} cannot be written to {path.parent} ({error});"
            f" {newest(folder)} is kept: make room, then --resume"
        ) from error
    there = checkpoints(folder)
    index = there.index(path)
    for other in (*there[:index], *there[index + keep :]):  # A newer one could not be read.
        other.unlink()


def require_room(folder: Path, size: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < size:
        raise OSError(f"it takes {size / 2**30:.2f} GiB, {free / 2**30:.2f} GiB are free")


def newest(folder: Path) -> str:
    return next((path.name for path in checkpoints(folder)), "no earlier one")


def load_checkpoint(folder: Path) -> State | None:
    """The newest checkpoint that can be read, or None where there is none.

    Raises ColorFluxError when there are checkpoints and none can be read.
    """
    for path in checkpoints(folder):
        try:
            require_whole(path)
            return torch.load(path, weights_only=True, map_location="cpu")
        except (BadZipFile, EOFError, OSError, RuntimeError, ValueError) as error:
            logger.warning("%s is damaged, the one before is taken (%s)", path, error)
    if checkpoints(folder):
        raise ColorFluxError(f"no checkpoint in {folder} can be read: start again elsewhere")
    return None


def require_whole(path: Path) -> None:
    """Compare the checksums in the file: torch.load does not. Raises BadZipFile among others."""
    with ZipFile(path) as archive:
        damaged = archive.testzip()
    if damaged:
        raise BadZipFile(f"{damaged} in it is not what was written")


def require_same(saved: State, config: State) -> None:
    """Refuse to go on with other settings than a checkpoint's, naming the first that differs."""
    for key in sorted(saved.keys() | config.keys()):
        if saved.get(key) != config.get(key):
            raise ColorFluxError(
                f"{flag_of(key)} is {config.get(key)}, the run to be resumed has {saved.get(key)}:"
                " give that, or start again with another --output"
            )
