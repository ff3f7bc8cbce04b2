"""Which photo becomes which file, and the run through them, which can be stopped and repeated."""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from ..errors import ColorFluxError
from ..photos.canvas import Canvas
from ..photos.color import Tone, tone
from ..photos.photo import (
    MAX_MEGAPIXELS,
    PHOTO_SUFFIXES,
    Photo,
    is_photo_file,
    load_photo,
    save_photo,
)

Report = Callable[[str, int, int], None]
"""Told of what ("step", "tile") so many are done, and how many there are in all."""

Work = Callable[[Photo, Report], Tensor]
"""What becomes of a photo, (3, H, W) in [0, 1]."""


@dataclass(frozen=True)
class Task:
    """What is done to each photo, and what is said of it."""

    work: Work

    done: str
    """What the photo is then: "colorized" and the like."""

    memory_flags: str
    """Flags that take less memory the smaller they are."""

    remark: Callable[[Photo], str] = lambda _: ""
    """What else to say of a photo that is done."""


class ModelRefused(ColorFluxError):
    """The model cannot do what the settings ask, for whatever photo."""


@dataclass(frozen=True)
class Job:
    """One photo and the file that its result goes to."""

    source: Path
    target: Path

    @property
    def is_done(self) -> bool:
        """Whether there is such a file already; files appear whole or not at all."""
        return self.target.is_file()


def plan(inputs: Sequence[Path], output: Path, suffix: str | None = None) -> list[Job]:
    """What there is to do, in natural order.

    A photo keeps its name; one found in a folder or its subfolders keeps its place there, too.
    Files that are named themselves are tried whatever they are called.

    Args:
        inputs: Photos and folders of photos.
        output: A folder, which need not exist; for a single photo, the file itself if it is called
            like one. As a folder inside an input folder, it is not an input itself.
        suffix: Of all outputs; None keeps each photo's own where it can be written, else ".png".

    Raises:
        ColorFluxError: when an input is missing or a folder without photos, when the output does
            not suit the inputs, or when a photo would be overwritten by its own or another's
            result.
    """
    for path in inputs:
        if not path.exists():
            raise ColorFluxError(f"{path} does not exist: check the name.")
    is_single = len(inputs) == 1 and not inputs[0].is_dir()
    if is_single and output.suffix and not output.is_dir():
        _require_photo_name(output, suffix)
        jobs = [Job(inputs[0], output)]
    else:
        _require_folder(output)
        jobs = [
            Job(path, output / _named(path.relative_to(top), suffix))
            for given in inputs
            for path, top in find_photos(given, leave_out=output)
        ]
    jobs = list(dict.fromkeys(jobs))
    _require_own_targets(jobs)
    return sorted(jobs, key=lambda job: _natural(job.source))


def prepare(jobs: Sequence[Job]) -> None:
    """Make the folders that the targets go to. Raises ColorFluxError when nothing can go there."""
    for folder in dict.fromkeys(job.target.parent for job in jobs):
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ColorFluxError(
                f"The folder {folder} cannot be made ({error.strerror}): choose another with -o."
            ) from error
        if not os.access(folder, os.W_OK | os.X_OK):
            raise ColorFluxError(f"The folder {folder} cannot be written to: choose another -o.")


def run(
    jobs: Sequence[Job],
    task: Task,
    *,
    max_megapixels: float = MAX_MEGAPIXELS,
    quiet: bool = False,
) -> list[str]:
    """Work on photo after photo, with a progress bar and a line for each on stderr.

    Args:
        jobs: The photos and what they become.
        task: How.
        max_megapixels: Photos of more pixels count as failed.
        quiet: Nothing is written to stderr.

    Returns:
        Why each photo that failed did so: it could not be read, worked on or written.

    Raises:
        ModelRefused: at the first photo, when the task raises a ColorFluxError.
    """
    failures: list[str] = []
    # None shows the bar on terminals only.
    with tqdm(jobs, unit="photo", disable=quiet or None, dynamic_ncols=True) as bar:

        def report(what: str, done: int, total: int) -> None:
            bar.set_postfix_str(f"{what} {done} of {total}")

        for job in bar:
            started = time.perf_counter()
            try:
                photo = load_photo(job.source, max_megapixels=max_megapixels)
                rgb = _done(photo, task, report)
                save_photo(job.target, rgb, like=photo)
            except ModelRefused:
                raise
            except ColorFluxError as error:
                failures.append(str(error))
                continue
            if not quiet:
                seconds = time.perf_counter() - started
                height, width = rgb.shape[-2:]
                line = f"{job.source} -> {job.target}: {width}x{height}{task.remark(photo)}"
                bar.write(f"{line}, {seconds:.1f} s", file=sys.stderr)
    return failures


def tone_of(photo: Photo) -> Tone:
    """Whether a photo is gray, toned like sepia, or has colors of its own."""
    if photo.is_gray:
        return "gray"
    return tone(Canvas("aspect", 256).resizing(photo.size).to_canvas(photo.pixels))


def _done(photo: Photo, task: Task, report: Report) -> Tensor:
    try:
        rgb = task.work(photo, report)
    except ColorFluxError as error:
        raise ModelRefused(str(error)) from error
    except (RuntimeError, MemoryError) as error:
        reason = str(error).partition("\n")[0]
        if _is_out_of_memory(error):
            reason = (
                "it takes more memory than there is; try a smaller "
                f"{task.memory_flags} or --device cpu."
            )
        raise ColorFluxError(f"{photo.path} could not be {task.done}: {reason}") from error
    if not rgb.sum().isfinite():
        raise ColorFluxError(
            f"{photo.path} could not be {task.done}: the model's result is not a number "
            f"everywhere; try --dtype float32."
        )
    return rgb


def find_photos(given: Path, leave_out: Path) -> list[tuple[Path, Path]]:
    """(photo, the folder that its place is counted from) for a photo or all those in a folder.

    Raises ColorFluxError when there is none, or a folder cannot be read.
    """
    if not given.is_dir():
        return [(given, given.parent)]

    def refuse(error: OSError) -> None:
        raise ColorFluxError(f"{error.filename} cannot be read: {error.strerror}.") from error

    found = []
    left_out = leave_out.resolve()
    for name, folders, files in os.walk(given, onerror=refuse):
        folder = Path(name)
        folders[:] = [
            sub
            for sub in folders
            if not sub.startswith(".") and (folder / sub).resolve() != left_out
        ]
        found += [(folder / file, given) for file in files if is_photo_file(folder / file)]
    if not found:
        raise ColorFluxError(f"{given} has no photos in it: they end in {_endings()}.")
    return found


def _named(path: Path, suffix: str | None) -> Path:
    if suffix is not None:
        return path.with_suffix(suffix)
    return path if path.suffix.lower() in PHOTO_SUFFIXES else path.with_suffix(".png")


def _natural(path: Path) -> list[list[str | int]]:
    """Sorts scan2 before scan10."""
    return [
        [int(piece) if i % 2 else piece.casefold() for i, piece in enumerate(pieces)]
        for pieces in (re.split(r"([0-9]+)", part) for part in path.parts)
    ]


def _require_photo_name(output: Path, suffix: str | None) -> None:
    if output.suffix.lower() not in PHOTO_SUFFIXES:
        raise ColorFluxError(
            f"{output} is neither a folder nor named like a photo: end it in {_endings()}."
        )
    if suffix is not None and output.suffix.lower() != suffix:
        raise ColorFluxError(f"{output} does not end in {suffix}: rename it or drop --format.")


def _require_folder(output: Path) -> None:
    if output.is_file():
        raise ColorFluxError(f"{output} is a file: choose a folder with -o.")
    if output.suffix.lower() in PHOTO_SUFFIXES and not output.is_dir():
        raise ColorFluxError(
            f"{output} is named like one photo, and the input is more: choose a folder with -o."
        )


def _require_own_targets(jobs: Sequence[Job]) -> None:
    sources = {job.source.resolve() for job in jobs}
    taken: dict[Path, Path] = {}
    for job in jobs:
        target = job.target.resolve()
        if target in sources:
            raise ColorFluxError(
                f"{job.target} is a photo to work on, and would be lost: choose another -o."
            )
        if target in taken:
            raise ColorFluxError(
                f"{taken[target]} and {job.source} would both be written to {job.target}: rename "
                f"one, or use separate runs."
            )
        taken[target] = job.source


def _is_out_of_memory(error: Exception) -> bool:
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate" in str(error)


def _endings() -> str:
    return ", ".join(sorted(PHOTO_SUFFIXES))
