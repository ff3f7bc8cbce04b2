"""Photo files in folders."""

from __future__ import annotations

import os
from collections import Counter, deque
from pathlib import Path

from ..errors import ColorFluxError
from .photo import is_photo_file, readable_suffixes

SYSTEM_FOLDERS = {"@eadir", "$recycle.bin", "system volume information", "lost+found"}
"""Thumbnails of network disks, bins and the like, in lower case."""


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
        endings = ", ".join(readable_suffixes())
        raise ColorFluxError(f"{given} has no photos in it: they end in {endings}.")
    return found


def left_out(given: Path, leave_out: Path) -> Counter[str]:
    """How many visible files of a folder :func:`find_photos` leaves out, by suffix."""
    if not given.is_dir():
        return Counter()
    others = (path for path in files_in(given, leave_out) if not is_photo_file(path))
    return Counter(path.suffix.lower() or path.name for path in others)


def files_in(folder: Path, leave_out: Path | None = None) -> list[Path]:
    """The files of a folder and its subfolders, sorted by path.

    Hidden files and folders, and those of systems (``SYSTEM_FOLDERS``), are left out.

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
                        if entry.name.lower() in SYSTEM_FOLDERS:
                            continue
                        (links if is_link else folders).append(path)
                    else:
                        found.append(path)
        except OSError as error:
            raise ColorFluxError(f"{here} cannot be read: {error.strerror}.") from error
    return sorted(found)
