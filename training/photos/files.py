"""Finds the photo files in folders."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from colorflux_core.errors import ColorFluxError
from colorflux_core.photos.photo import is_photo_file


@dataclass(frozen=True)
class PhotoFile:
    """A photo file; a file whose size or modification time changes counts as another photo.

    Attributes:
        file: Relative to the manifest's folder, with forward slashes.
        size: In bytes.
        modified: Modification time in nanoseconds.
    """

    file: str
    size: int
    modified: int


@dataclass(frozen=True)
class Found:
    """The photos in folders, and the other files with the reason why each is not a photo."""

    photos: list[PhotoFile]
    others: dict[str, str]


def find_photos(folders: Sequence[str], output: Path, own: set[str]) -> Found:
    """Find photos, in the order of the folders and by name within each.

    Args:
        folders: FOLDER, or FOLDER=COUNT for its first COUNT photos.
        output: Absolute path of the folder that file names are relative to.
        own: Names of files in ``output`` to skip.

    Raises:
        ColorFluxError: if a folder does not exist or has no photos.
        OSError: if a subfolder cannot be read.
    """
    photos: dict[str, PhotoFile] = {}
    others: dict[str, str] = {}
    for given in folders:
        folder, count = folder_and_count(given)
        if not folder.is_dir():
            raise ColorFluxError(f"{folder} is not a folder: check the name")
        found: list[PhotoFile] = []
        for path in files_in(folder.resolve()):
            file = Path(os.path.relpath(path, output)).as_posix()
            if file in own:
                continue
            if not path.is_file():
                others[file] = "broken link"
            elif not is_photo_file(path):
                others[file] = f"extension {path.suffix}" if path.suffix else "no file extension"
            elif not is_text(file):
                others[file] = "its name is not UTF-8"
            else:
                stat = path.stat()
                found.append(PhotoFile(file, stat.st_size, stat.st_mtime_ns))
        if not found[:count]:
            raise ColorFluxError(f"{given} has no photos: JPEG, PNG, TIFF and WebP files")
        photos |= {photo.file: photo for photo in found[:count]}
    return Found(list(photos.values()), others)


def folder_and_count(given: str) -> tuple[Path, int | None]:
    """Parse FOLDER=COUNT or FOLDER; an existing folder whose name looks like FOLDER=COUNT wins."""
    folder, _, count = given.rpartition("=")
    if folder and count.isdecimal() and not Path(given).is_dir():
        return Path(folder), int(count)
    return Path(given), None


def files_in(folder: Path) -> list[Path]:
    """The files of a folder and its subfolders, sorted by name, without hidden ones.

    Links are followed, but no folder is read twice. Raises OSError if a folder cannot be read.
    """

    def refuse(error: OSError) -> NoReturn:
        raise error

    found: list[Path] = []
    read: set[Path] = set()
    for name, subfolders, files in os.walk(folder, onerror=refuse, followlinks=True):
        here = Path(name)
        if here.resolve() in read:
            subfolders.clear()
            continue
        read.add(here.resolve())
        subfolders[:] = sorted(sub for sub in subfolders if not sub.startswith("."))
        found += [here / file for file in files if not file.startswith(".")]
    return sorted(found)


def is_text(name: str) -> bool:
    """Whether a file name can be encoded in UTF-8."""
    return name == name.encode(errors="ignore").decode()
