"""Finds the photo files that a manifest is made from."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from colorflux_core.errors import ColorFluxError
from colorflux_core.photos.finding import files_in
from colorflux_core.photos.photo import is_photo_file


@dataclass(frozen=True)
class PhotoFile:
    """A photo file; if its size or modification time changes, it counts as another photo.

    Attributes:
        file: relative to the manifest's folder, with forward slashes.
        size: in bytes.
        modified: in nanoseconds.
    """

    file: str
    size: int
    modified: int


@dataclass(frozen=True)
class Found:
    """The photo files, and all other files with the reason why they are not photos."""

    photos: list[PhotoFile]
    others: dict[str, str]


def list_files(folders: Sequence[str], output: Path, own: set[str]) -> Found:
    """The files in the folders, folder by folder and sorted by path.

    Args:
        folders: Each FOLDER, or FOLDER=COUNT for its first photos.
        output: Absolute path of the folder that the names are relative to.
        own: Names of files in ``output`` to ignore.

    Raises:
        ColorFluxError: when a folder does not exist, has no photos or cannot be read.
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
                others[file] = "leads to no file"
            elif not is_photo_file(path):
                others[file] = f"ends in {path.suffix}" if path.suffix else "has no ending"
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
    """The parts of FOLDER=COUNT or FOLDER; an existing folder's name may itself contain ``=``."""
    folder, _, count = given.rpartition("=")
    if folder and count.isdecimal() and not Path(given).is_dir():
        return Path(folder), int(count)
    return Path(given), None


def is_text(name: str) -> bool:
    """Whether a file's name can be written to a CSV in UTF-8."""
    return name == name.encode(errors="ignore").decode()
