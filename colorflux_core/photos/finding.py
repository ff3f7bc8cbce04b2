"""Photo files in folders."""

from __future__ import annotations

import os
from collections import deque
from pathlib import Path

from ..errors import ColorFluxError
from .photo import PHOTO_SUFFIXES, is_photo_file


def find_photos(given: Path, leave_out: Path) -> list[Path]:
    """The photos of a folder and its subfolders, sorted by path; a file stands for itself.

    Args:
        given: A file, of whatever name, or a folder.
        leave_out: A folder that is not searched, as :func:`files_in` does.

    Raises:
        ColorFluxError: when the folder has no photos, or a folder cannot be read.
    """
    if not given.is_dir():
        return [given]
    found = [path for path in files_in(given, leave_out) if is_photo_file(path)]
    if not found:
        endings = ", ".join(sorted(PHOTO_SUFFIXES))
        raise ColorFluxError(f"{given} has no photos in it: they end in {endings}.")
    return found


def files_in(folder: Path, leave_out: Path | None = None) -> list[Path]:
    """The files of a folder and its subfolders, sorted by path, without hidden ones.

    Links to folders are followed, but no folder is read twice. Links come last, so that a file is
    found at its own place if that is in the folder, too. ``leave_out`` is a folder that is not
    read.

    Raises ColorFluxError when a folder cannot be read.
    """
    read = {leave_out.resolve()} - {folder.resolve()} if leave_out else set()
    found: list[Path] = []
    folders, links = deque([folder]), deque[Path]()
    while folders or links:
        here = folders.popleft() if folders else links.popleft()
        resolved = here.resolve()
        if resolved in read:
            continue
        read.add(resolved)
        try:
            with os.scandir(here) as entries:
                for entry in sorted(entries, key=lambda entry: entry.name):
                    path = here / entry.name
                    is_link = entry.is_symlink()
                    if entry.name.startswith("."):
                        continue
                    if path.is_dir() if is_link else entry.is_dir():
                        (links if is_link else folders).append(path)
                    else:
                        found.append(path)
        except OSError as error:
            raise ColorFluxError(f"{here} cannot be read: {error.strerror}.") from error
    return sorted(found)
