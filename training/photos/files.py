"""The photo files in folders, as they are at this moment."""

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
    """A file as it was when it was found: with another size or time it is another photo.

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
    """Photos to look at, and the other files, each with the reason why it is none."""

    photos: list[PhotoFile]
    others: dict[str, str]


def find_photos(folders: Sequence[str], output: Path, own: set[str]) -> Found:
    """What is in the folders, in their order and by name within each.

    Args:
        folders: Each FOLDER, or FOLDER=COUNT for its first photos.
        output: Absolute path of the folder that names become relative to.
        own: Names of files in ``output`` that are left out.

    Raises:
        ColorFluxError: when there is no such folder, and when it has no photos.
        OSError: when one of its subfolders cannot be read.
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
    """FOLDER=COUNT, or FOLDER alone with no count; a folder's own name may look like the first."""
    folder, _, count = given.rpartition("=")
    if folder and count.isdecimal() and not Path(given).is_dir():
        return Path(folder), int(count)
    return Path(given), None


def files_in(folder: Path) -> list[Path]:
    """The files of a folder and its subfolders by name, hidden ones left out.

    Links are followed, but no folder is read twice. Raises OSError.
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
    """Whether a file's name can be written to a CSV in UTF-8."""
    return name == name.encode(errors="ignore").decode()
