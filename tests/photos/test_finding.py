"""The finder sees each visible file once."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from colorflux_core.errors import ColorFluxError
from colorflux_core.photos.finding import files_in, find_photos


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("b/2.png", "a.jpg", "a.txt", ".hidden/1.png", "b/.3.png", "b/out/4.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    return tmp_path


def names(folder: Path, paths: list[Path]) -> list[str]:
    return [path.relative_to(folder).as_posix() for path in paths]


def test_subfolders_are_searched_and_hidden_ones_are_not(folder: Path) -> None:
    assert names(folder, files_in(folder)) == ["a.jpg", "a.txt", "b/2.png", "b/out/4.png"]
    photos = find_photos(folder, leave_out=folder / "b" / "out")
    assert names(folder, photos) == ["a.jpg", "b/2.png"]


def test_a_folder_is_searched_even_if_it_is_the_output(folder: Path) -> None:
    assert find_photos(folder, leave_out=folder) == find_photos(folder, leave_out=folder / "none")


def test_links_are_followed_but_each_file_is_found_at_its_own_place(folder: Path) -> None:
    before = files_in(folder)
    (folder / "a link").symlink_to(folder / "b")
    (folder / "b" / "back").symlink_to(folder)
    (folder / "itself").symlink_to(folder / "itself")
    assert files_in(folder) == sorted([*before, folder / "itself"])
    (folder / "b" / "out" / "away").symlink_to(folder / ".hidden")
    assert folder / "b" / "out" / "away" / "1.png" in files_in(folder)


def test_a_file_is_taken_whatever_its_name(folder: Path) -> None:
    assert find_photos(folder / "a.txt", leave_out=folder) == [folder / "a.txt"]


def test_folders_without_photos_or_access_are_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "empty").mkdir()
    with pytest.raises(ColorFluxError, match=r"empty has no photos"):
        find_photos(folder / "empty", leave_out=folder / "none")

    def denied(path: Path) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(os, "scandir", denied)
    with pytest.raises(ColorFluxError, match=r"cannot be read: Permission denied"):
        files_in(folder)
