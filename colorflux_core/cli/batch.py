"""Process photos and folders of photos into output files; an interrupted run can be repeated."""

from __future__ import annotations

import os
import re
import sys
import time
import unicodedata
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from ..errors import ColorFluxError
from ..photos.canvas import Canvas
from ..photos.color import NotFinite, Tone, require_finite, tone
from ..photos.finding import find_photos
from ..photos.photo import MAX_MEGAPIXELS, PHOTO_SUFFIXES, Photo, load_photo, save_photo
from ..photos.resize import Resizing
from ..photos.xmp import Provenance

Report = Callable[[str, int, int], None]
"""Progress callback: unit ("step" or "tile"), how many are done, how many there are."""

Work = Callable[[Photo, Report], Tensor]
"""Turns a photo into its result (3, H, W) in [0, 1]."""


@dataclass(frozen=True)
class Task:
    """What a command does to each photo, and the words for its messages.

    Attributes:
        work: Processes one photo.
        done: The past participle for messages, such as "colorized".
        memory_flags: The flags to lower when memory runs out.
        remark: Text to add to the line of a finished photo, with its own comma.
        provenance: What the results say about how they were made; None for nothing.
    """

    work: Work
    done: str
    memory_flags: str
    remark: Callable[[Photo], str] = lambda _: ""
    provenance: Provenance | None = None


class ModelRefused(ColorFluxError):
    """The model rejects the settings, so every photo would fail."""


@dataclass(frozen=True)
class Job:
    """A photo and the file for its result."""

    source: Path
    target: Path

    @property
    def is_done(self) -> bool:
        """Whether the result exists; it is complete then, since files are written atomically.

        Empty files are not results: a full disk or another program left them.
        """
        return self.target.is_file() and self.target.stat().st_size > 0


def list_jobs(inputs: Sequence[Path], output: Path, suffix: str | None = None) -> list[Job]:
    """Match each input photo with its output file, in natural order (scan2 before scan10).

    Outputs keep the photos' names, and the subfolders below an input folder. Inputs that are files
    are accepted under any name.

    Args:
        inputs: Photos and folders of photos.
        output: A folder, which need not exist, or, for a single photo, a file name that ends like a
            photo's. If it lies inside an input folder, it is not searched for photos.
        suffix: Suffix of all outputs. None keeps each photo's own, or ".png" if that cannot be
            written.

    Raises:
        ColorFluxError: when an input does not exist or has no photos, the output does not suit the
            inputs, or a result would overwrite an input or another result.
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
            Job(path, output / _output_name(path.relative_to(top), suffix))
            for given in inputs
            for top in [given if given.is_dir() else given.parent]
            for path in find_photos(given, leave_out=output)
        ]
    jobs = list(dict.fromkeys(jobs))
    _require_own_targets(jobs)
    return sorted(jobs, key=lambda job: _natural(job.source))


def make_folders(jobs: Sequence[Job]) -> None:
    """Create the output folders.

    Raises:
        ColorFluxError: when one cannot be created or written, or ignores case and two results
            would be one file there.
    """
    for folder in dict.fromkeys(job.target.parent for job in jobs):
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ColorFluxError(
                f"The folder {folder} cannot be created ({error.strerror}): choose another with -o."
            ) from error
        if not os.access(folder, os.W_OK | os.X_OK):
            raise ColorFluxError(f"The folder {folder} is not writable: choose another with -o.")
    _require_names_that_differ(jobs)


def process_jobs(
    jobs: Sequence[Job],
    task: Task,
    *,
    max_megapixels: float = MAX_MEGAPIXELS,
    quiet: bool = False,
) -> list[str]:
    """Process photo after photo, with a progress bar and a line for each on stderr.

    Args:
        jobs: The photos and their outputs.
        task: What to do with each photo.
        max_megapixels: Larger photos count as failed.
        quiet: Write nothing to stderr.

    Returns:
        One message for each photo that could not be read, processed or written.

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
                rgb = _processed(photo, task, report)
                lost = save_photo(job.target, rgb, like=photo, provenance=task.provenance)
            except ModelRefused:
                raise
            except MemoryError:
                failures.append(f"{job.source} does not fit into memory: reduce its size.")
                continue
            except ColorFluxError as error:
                failures.append(str(error))
                continue
            if not quiet:
                seconds = time.perf_counter() - started
                height, width = rgb.shape[-2:]
                line = f"{job.source} -> {job.target}: {width}x{height}{task.remark(photo)}"
                notes = [line, *photo.remarks, *lost, f"{seconds:.1f} s"]
                bar.write(", ".join(notes), file=sys.stderr)
    return failures


def tone_of(photo: Photo) -> Tone:
    """Whether a photo is gray, toned like sepia, or in color."""
    if photo.is_gray:
        return "gray"
    return tone(Resizing.onto(Canvas("aspect", 256), photo.size).to_canvas(photo.pixels))


def _processed(photo: Photo, task: Task, report: Report) -> Tensor:
    try:
        rgb = task.work(photo, report)
        require_finite(rgb, "The result")
    except NotFinite as error:
        raise ColorFluxError(
            f"{photo.path} could not be {task.done}: the model's result has NaN or "
            f"infinite values; try --dtype float32."
        ) from error
    except ColorFluxError as error:
        raise ModelRefused(str(error)) from error
    except (RuntimeError, MemoryError) as error:
        reason = str(error).partition("\n")[0]
        if _is_out_of_memory(error):
            reason = f"out of memory; try a smaller {task.memory_flags} or --device cpu."
        raise ColorFluxError(f"{photo.path} could not be {task.done}: {reason}") from error
    return rgb


def _output_name(path: Path, suffix: str | None) -> Path:
    if suffix is not None:
        return path.with_suffix(suffix)
    return path if path.suffix.lower() in PHOTO_SUFFIXES else path.with_suffix(".png")


def _natural(path: Path) -> list[list[str | int]]:
    """A sort key that puts scan2 before scan10."""
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
            f"{output} is named like a photo, but is for several inputs: choose a folder with -o."
        )


def _require_own_targets(jobs: Sequence[Job]) -> None:
    """Refuse jobs that would overwrite an input, or each other's results."""
    sources = {job.source.resolve() for job in jobs}
    taken: dict[Path, Path] = {}
    for job in jobs:
        target = job.target.resolve()
        if target in sources:
            raise ColorFluxError(
                f"{job.target} is an input photo and would be overwritten: choose another -o."
            )
        if target in taken:
            raise ColorFluxError(
                f"{taken[target]} and {job.source} would both be written to {job.target}: rename "
                f"one, or use separate runs."
            )
        taken[target] = job.source


def _require_names_that_differ(jobs: Sequence[Job]) -> None:
    """Refuse A.jpg and a.jpg on disks where they are one file, as on Windows and macOS."""
    taken: dict[tuple[Path, str], Job] = {}
    for job in jobs:
        name = unicodedata.normalize("NFC", job.target.name).casefold()
        other = taken.setdefault((job.target.parent, name), job)
        if other is not job and ignores_case(job.target.parent):
            raise ColorFluxError(
                f"{other.source} and {job.source} would both be written to {job.target}, since "
                f"the disk ignores case: rename one, or use separate runs."
            )


def ignores_case(folder: Path) -> bool:
    """Whether names that differ in case are one file in this folder."""
    probe = folder / f".case.{uuid.uuid4().hex[:8]}.part"
    probe.touch()
    try:
        return probe.with_name(probe.name.upper()).exists()
    finally:
        probe.unlink()


def _is_out_of_memory(error: Exception) -> bool:
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate" in str(error)


def _endings() -> str:
    return ", ".join(sorted(PHOTO_SUFFIXES))
