"""Which photo goes where, and what is never overwritten."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from colorflux_core.cli.batch import Job, Report, Task, list_jobs, process_jobs
from colorflux_core.errors import ColorFluxError
from colorflux_core.photos.photo import Photo


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def photos(*names: str) -> None:
    for name in names:
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (4, 3)).save(name, "PNG")


def planned(inputs: str, output: str, suffix: str | None = None) -> list[tuple[str, str]]:
    jobs = list_jobs([Path(name) for name in inputs.split()], Path(output), suffix)
    return [(str(job.source), str(job.target)) for job in jobs]


def refusal(inputs: str, output: str, suffix: str | None = None) -> str:
    with pytest.raises(ColorFluxError) as caught:
        planned(inputs, output, suffix)
    return str(caught.value)


@pytest.mark.parametrize(
    ("output", "target"),
    [
        ("new.png", "new.png"),
        ("new/deep.TIFF", "new/deep.TIFF"),
        ("new", "new/a.JPG"),
        ("there", "there/a.JPG"),
        ("there.png", "there.png/a.JPG"),
    ],
)
def test_one_photo_goes_to_a_file_or_into_a_folder(output: str, target: str) -> None:
    photos("a.JPG", "there/x.png", "there.png/x.png")
    assert planned("a.JPG", output) == [("a.JPG", target)]


def test_folders_keep_their_structure_and_come_in_natural_order() -> None:
    photos("in/p10.png", "in/p9.jpg", "in/P1.webp", "in/sub 2/p.tif", "in/sub 10/p.tif")
    photos("in/.hidden.png", "in/.thumbnails/p.png")
    Path("in/notes.txt").write_text("not a photo")
    Path("in/folder.jpg").mkdir()
    assert planned("in", "out") == [
        ("in/P1.webp", "out/P1.webp"),
        ("in/p9.jpg", "out/p9.jpg"),
        ("in/p10.png", "out/p10.png"),
        ("in/sub 2/p.tif", "out/sub 2/p.tif"),
        ("in/sub 10/p.tif", "out/sub 10/p.tif"),
    ]


def test_the_output_folder_inside_the_input_is_not_an_input() -> None:
    photos("in/a.png", "in/sub/out/a.png", "in/sub/out2/b.png")
    assert planned("in", "in/sub/../sub/out") == [
        ("in/a.png", "in/sub/../sub/out/a.png"),
        ("in/sub/out2/b.png", "in/sub/../sub/out/sub/out2/b.png"),
    ]


def test_what_was_asked_for_twice_is_done_once() -> None:
    photos("in/a.png")
    assert planned("in in/a.png in/a.png", "out") == [("in/a.png", "out/a.png")]


def test_a_named_file_is_tried_whatever_its_name_and_kept_as_png() -> None:
    photos("scan.bmp", "scan")
    assert planned("scan.bmp", "out") == [("scan.bmp", "out/scan.png")]
    assert planned("scan", "out") == [("scan", "out/scan.png")]


def test_one_suffix_for_all() -> None:
    photos("in/a.jpg", "in/b.c.png")
    assert planned("in", "out", ".tif") == [
        ("in/a.jpg", "out/a.tif"),
        ("in/b.c.png", "out/b.c.tif"),
    ]


@pytest.mark.parametrize(
    ("inputs", "output", "suffix", "named"),
    [
        ("in/a.jpg in/a.png", "out", ".png", ["in/a.jpg", "in/a.png", "out/a.png"]),
        ("in", "out", ".png", ["in/a.jpg", "in/a.png", "out/a.png"]),
        ("in other", "out", None, ["in/a.jpg", "other/a.jpg", "out/a.jpg"]),
        ("in", "in", None, ["in/a.", "overwritten"]),
        ("in/a.jpg", "in", None, ["in/a.jpg", "overwritten"]),
        ("in/a.jpg", "in/../in/a.jpg", None, ["a.jpg", "overwritten"]),
        ("in/a.jpg other/a.jpg", "in", None, ["in/a.jpg", "overwritten"]),
        ("link.jpg", "in/a.jpg", None, ["in/a.jpg", "overwritten"]),
        ("in/a.jpg nowhere", "out", None, ["nowhere", "does not exist"]),
        ("empty", "out", None, ["empty", "no photos"]),
        ("in empty", "out", None, ["empty", "no photos"]),
        ("in", "file.txt", None, ["file.txt", "is a file"]),
        ("in/a.jpg in/a.png", "new.png", None, ["new.png", "choose a folder"]),
        ("in/a.jpg", "new.gif", None, ["new.gif", ".png"]),
        ("in/a.jpg", "new.png", ".tif", ["new.png", ".tif", "--format"]),
    ],
)
def test_what_cannot_be_meant_is_refused(
    inputs: str, output: str, suffix: str | None, named: list[str]
) -> None:
    photos("in/a.jpg", "in/a.png", "other/a.jpg")
    Path("empty/deep").mkdir(parents=True)
    Path("file.txt").touch()
    Path("link.jpg").symlink_to("in/a.jpg")
    message = refusal(inputs, output, suffix)
    assert not [name for name in named if name not in message], message
    assert not Path("out").exists()


@pytest.mark.parametrize(
    ("error", "named"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried ..."), ["memory", "--tile", "--device"]),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), ["memory", "--tile"]),
        (MemoryError(), ["memory", "--tile"]),
        (RuntimeError("a kernel failed\nat some place"), ["a kernel failed"]),
    ],
)
def test_a_photo_that_fails_leaves_the_others_alone(error: Exception, named: list[str]) -> None:
    photos("a.png", "b.png")

    def work(photo: Photo, report: Report) -> Tensor:
        if photo.path.name == "a.png":
            raise error
        return photo.rgb

    jobs = [Job(Path(name), Path(f"{name}.png")) for name in ("a.png", "b.png")]
    (failure,) = process_jobs(jobs, Task(work, "framed", "--tile"), quiet=True)
    assert failure.startswith("a.png could not be framed: ")
    assert not [name for name in named if name not in failure], failure
    assert "\n" not in failure
    assert [job.is_done for job in jobs] == [False, True]
