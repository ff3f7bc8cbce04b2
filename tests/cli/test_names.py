"""File names, folders and disks as they are found in the wild."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from colorflux_core import restore
from colorflux_core.cli import batch
from colorflux_core.cli.batch import Task, list_jobs, make_folders, process_jobs
from colorflux_core.colorize import main
from colorflux_core.errors import ColorFluxError
from colorflux_core.files import atomic_write, remove_stale
from tests.cli.command_runs import refused, result_of, scan

ROOT = Path(__file__).resolve().parents[2]
PASS = Task(lambda photo, report: photo.rgb, "copied", "--tile")


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def names(folder: str = ".") -> list[str]:
    return [path.name for path in Path(folder).iterdir()]


def copied(*inputs: str, output: str = "out") -> list[str]:
    """The results of a run that copies, as names."""
    jobs = list_jobs([Path(name) for name in inputs], Path(output))
    make_folders(jobs)
    assert not process_jobs(jobs, PASS, quiet=True)
    return sorted(str(path) for path in Path(output).rglob("*") if path.is_file())


@pytest.mark.parametrize("length", [240, 241, 255])
@pytest.mark.parametrize("letter", ["n", "é", "祖"])
def test_long_names(length: int, letter: str) -> None:
    room = length - len(".png")
    width = len(letter.encode())
    name = letter * (room // width) + "x" * (room % width) + ".png"
    assert len(name.encode()) == length
    scan(f"in/{name}")
    assert copied("in") == [f"out/{name}"]


def test_names_that_are_not_utf_8_are_escaped(capfd: pytest.CaptureFixture[str]) -> None:
    name = os.fsdecode(b"f\xfcr.png")
    Image.new("L", (4, 3)).save("a.png")
    try:
        Path("in").mkdir()
        Path("a.png").rename(f"in/{name}")
    except OSError:
        pytest.skip("the disk takes UTF-8 names only")
    command = [sys.executable, "-m", "colorflux_core.colorize", "in", "-o", "out", "--dry-run"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "utf-8:strict"}
    result = subprocess.run(command, env=environment, capture_output=True, check=True)
    assert result.stdout == b"in/f\\udcfcr.png -> out/f\\udcfcr.png\n"
    assert copied("in") == [f"out/{name}"]


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["a.png", "-o", "-"], "standard output"),
        (["a.png", "-o", ""], "empty"),
        (["", "-o", "out"], "empty"),
        (["a.png", "-o", "out", "--reference", ""], "empty"),
    ],
)
def test_names_that_are_none(
    words: list[str], named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    scan("a.png")
    refused("colorize", result_of(main, words, capsys), named)
    if "--reference" not in words:
        models = ["--s3diff=x", "--sd-turbo=y"]
        refused("restore", result_of(restore.main, [*words, *models], capsys), named)
    assert names() == ["a.png"]


def test_a_named_pipe_costs_one_line() -> None:
    os.mkfifo("pipe.png")
    jobs = list_jobs([Path("pipe.png")], Path("out"))
    make_folders(jobs)
    (failure,) = process_jobs(jobs, PASS, quiet=True)
    assert "pipe.png is not a file" in failure


def test_an_empty_result_does_not_count_as_done() -> None:
    scan("a.png")
    Path("b.png").touch()
    (job,) = list_jobs([Path("a.png")], Path("b.png"))
    assert not job.is_done
    Path("b.png").write_bytes(b"x")
    assert job.is_done


def test_system_folders_are_skipped_and_links_followed(capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("a.jpg", "b.jfif", "c.jpe", "d.bmp", "e.gif", "f.avif"):
        Path("in").mkdir(exist_ok=True)
        kind = {"jpg": "JPEG", "jfif": "JPEG", "jpe": "JPEG"}.get(name[2:])
        Image.new("RGB", (8, 6)).save(f"in/{name}", kind)
    for name in ("@eaDir/a.jpg/t.jpg", "$RECYCLE.BIN/r.jpg", "System Volume Information/s.jpg"):
        scan(f"in/{name}")
    for name in ("._a.jpg", ".DS_Store", "notes.txt", "movie.mp4", "other.mp4"):
        Path(f"in/{name}").write_bytes(b"x")
    scan("elsewhere/g.png")
    Path("in/link").symlink_to("../elsewhere")
    assert copied("in") == [
        *("out/a.jpg", "out/b.jfif", "out/c.jpe", "out/d.png", "out/e.png", "out/f.png"),
        "out/link/g.png",
    ]
    assert result_of(main, ["in", "-o", "new", "--dry-run"], capsys)[1] == [
        "left out: 2 .mp4, 1 .txt"
    ]


def test_the_line_of_a_photo_names_what_is_lost(capsys: pytest.CaptureFixture[str]) -> None:
    frames = [Image.new("L", (9, 9), value) for value in (0, 90)]
    frames[0].save("a.gif", save_all=True, append_images=frames[1:], comment=b"Oma")
    jobs = list_jobs([Path("a.gif")], Path("b.tif"))
    assert not process_jobs(jobs, PASS)
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("a.gif -> b.tif: 9x9, 1 further picture left out, the comment dropped, ")


def test_names_that_differ_in_case_only(monkeypatch: pytest.MonkeyPatch) -> None:
    scan("in/a.png")
    scan("in/A.png")
    if len(names("in")) == 1:
        pytest.skip("the disk ignores case")
    assert copied("in") == ["out/A.png", "out/a.png"]
    monkeypatch.setattr(batch, "ignores_case", lambda folder: True)
    with pytest.raises(ColorFluxError, match="ignores case"):
        copied("in", output="new")
    assert not names("new")


def test_only_stale_temporary_files_of_ours_are_removed() -> None:
    others = {".a.part", "b.12345678.part", ".c.1234567g.part", "d.png"}
    for name in (*others, ".e.png.0123abcd.part"):
        Path(name).touch()
    with atomic_write(Path("new.png")) as unfinished:
        unfinished.write_bytes(b"x")
        remove_stale(Path())
        assert set(names()) == {*others, unfinished.name}
    remove_stale(Path())
    assert set(names()) == {*others, "new.png"}
