"""Checkpoints: the whole state of a run, in one file that is complete or not there at all.

Besides what is saved, seed and step say everything: which rows come next and what is random in
them (see ``order``). The state is gathered from all devices, so that one device can go on from the
checkpoint of many.
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

from colorflux_core.errors import ColorFluxError
from colorflux_core.files import atomic_write

logger = logging.getLogger(__name__)
State = dict[str, Any]


def checkpoints(folder: Path) -> list[Path]:
    """A run's checkpoints, the newest first."""
    return sorted((folder / "checkpoints").glob("step-*.pt"), reverse=True)


def save_checkpoint(folder: Path, step: int, state: State, keep: int) -> None:
    """Write a checkpoint atomically, then delete all but the ``keep`` newest.

    Raises ColorFluxError when there is no room for it or it cannot be written; existing checkpoints
    are kept.
    """
    path = folder / "checkpoints" / f"step-{step:07}.pt"
    for leftover in path.parent.glob("*.part"):  # From a process that was killed while saving.
        leftover.unlink()
    fix = f"make room, then --resume from {newest(folder)}"
    with atomic_write(path, fix=fix, make_folder=True) as unfinished:
        tensors = [leaf for leaf in tree_leaves(state) if isinstance(leaf, Tensor)]
        require_room(path.parent, sum(tensor.nbytes for tensor in tensors))
        with unfinished.open("wb") as file:
            torch.save(state, file)
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
                f"--{key} is {config.get(key)}, the run to be resumed has {saved.get(key)}: give"
                " that, or start again with another --output"
            )
