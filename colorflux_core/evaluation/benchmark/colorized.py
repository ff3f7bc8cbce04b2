"""Colorize benchmark sets with a bundle, in the layout of other methods' results."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

from torch import Tensor

from ...bundles.bundle import Bundle
from ...cli.batch import Job, Report, Task, make_folders, process_jobs
from ...digest import sha256
from ...errors import ColorFluxError
from ...model.colorization import colorize
from ...photos.photo import Photo
from ..rows import write_file
from .sets import BenchmarkSet

MADE_BY = "made-by.json"


def colorize_sets(
    load: Callable[[], Bundle],
    sets: Sequence[BenchmarkSet],
    folder: Path,
    made_by: Mapping[str, object],
    *,
    quiet: bool = False,
) -> None:
    """Write the missing ``folder/SET/NAME.png``; the bundle is only loaded if any is missing.

    Args:
        load: Loads the bundle.
        sets: The sets to colorize.
        folder: Folder for the results.
        made_by: JSON-compatible values that identify the bundle. They are saved beside the results,
            together with the hashes of the sets.
        quiet: Whether to hide the progress bar.

    Raises:
        ColorFluxError: if existing results are from another bundle or other images, an image cannot
            be colorized, or a file cannot be written.
    """
    require_same(folder, {"bundle": dict(made_by), **{set.name: hash_inputs(set) for set in sets}})
    jobs = [
        Job(item.input, folder / benchmark.name / f"{item.name}.png")
        for benchmark in sets
        for item in benchmark.items
    ]
    todo = [job for job in jobs if not job.is_done]
    if not todo:
        return
    make_folders(todo)
    bundle = load()

    def colorize_photo(photo: Photo, report: Report) -> Tensor:
        return colorize(
            bundle.pipeline, photo.pixels, bundle.settings, on_step=partial(report, "step")
        )

    failures = process_jobs(todo, Task(colorize_photo, "colorized", "canvas"), quiet=quiet)
    if failures:
        raise ColorFluxError("; ".join(failures))


def require_same(folder: Path, made_by: Mapping[str, object]) -> None:
    """Record the bundle and sets of the results in ``folder``, merging with an earlier record.

    Raises:
        ColorFluxError: if the earlier record names another bundle, or other images for a set.
    """
    record = folder / MADE_BY
    try:
        before = json.loads(record.read_text(encoding="utf-8")) if record.is_file() else {}
    except ValueError as error:
        raise ColorFluxError(f"{record} is damaged: remove {folder}") from error
    for what in before.keys() & made_by.keys():
        if before[what] != made_by[what]:
            raise ColorFluxError(
                f"{folder} has results of another {what}, or the {what} has changed: remove the"
                " folder, or choose another one with -o"
            )
    write_file(record, json.dumps(before | dict(made_by), indent=1).encode())


def hash_inputs(benchmark: BenchmarkSet) -> str:
    """Hash the names and files of a set's input images."""
    return sha256(
        *(f"{item.name} {sha256(item.input.read_bytes())}".encode() for item in benchmark.items)
    )


def file_stats(bundle: Path) -> dict[str, object]:
    """Identify a bundle by the size and modification time of each file."""
    files = sorted(path for path in bundle.rglob("*") if path.is_file())
    return {
        path.relative_to(bundle).as_posix(): [path.stat().st_size, path.stat().st_mtime_ns]
        for path in files
    }
