"""A bundle's own results for benchmark sets, in the form in which other methods' are read."""

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
    """Write ``folder/SET/NAME.png`` for every image that has none yet; without any, load nothing.

    Args:
        load: The bundle.
        sets: What to colorize.
        folder: For the results.
        made_by: What tells the bundle from others, as JSON can hold it. It is kept beside the
            results, with the hashes of the sets.

    Raises:
        ColorFluxError: when results that are there were made by another bundle, or from other
            images; when an image cannot be colorized, or a file not be written.
    """
    require_same(folder, {"bundle": dict(made_by), **{set.name: of_inputs(set) for set in sets}})
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

    def in_color(photo: Photo, report: Report) -> Tensor:
        return colorize(
            bundle.pipeline, photo.pixels, bundle.settings, on_step=partial(report, "step")
        )

    failures = process_jobs(todo, Task(in_color, "colorized", "canvas"), quiet=quiet)
    if failures:
        raise ColorFluxError("; ".join(failures))


def require_same(folder: Path, made_by: Mapping[str, object]) -> None:
    """Raises ColorFluxError when the results in ``folder`` are not of this bundle and these sets;
    else they are from now on, and of the sets before."""
    record = folder / MADE_BY
    try:
        before = json.loads(record.read_text(encoding="utf-8")) if record.is_file() else {}
    except ValueError as error:
        raise ColorFluxError(f"{record} is damaged: remove {folder}") from error
    for what in before.keys() & made_by.keys():
        if before[what] != made_by[what]:
            raise ColorFluxError(
                f"{folder} has results of another {what}, or of one that has changed since: remove"
                " the folder, or choose another -o"
            )
    write_file(record, json.dumps(before | dict(made_by), indent=1).encode())


def of_inputs(benchmark: BenchmarkSet) -> str:
    """A hash of what is colorized."""
    return sha256(
        *(f"{item.name} {sha256(item.input.read_bytes())}".encode() for item in benchmark.items)
    )


def of_files(bundle: Path) -> dict[str, object]:
    """What a bundle is known by: its files' sizes and times, by name."""
    files = sorted(path for path in bundle.rglob("*") if path.is_file())
    return {
        path.relative_to(bundle).as_posix(): [path.stat().st_size, path.stat().st_mtime_ns]
        for path in files
    }
