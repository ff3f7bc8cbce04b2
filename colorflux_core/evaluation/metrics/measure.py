"""Compute all metrics for every method's result for every image.

Values are cached by the content of the files they depend on, so an interrupted run can be resumed.
Each file is read only once per image.
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import torch
from torch.utils.data import Dataset
from tqdm import tqdm

from ...digest import sha256
from ...errors import ColorFluxError
from ...loading import load
from ...photos.canvas import Size
from ...photos.color import unit_range
from ...photos.photo import Photo, load_photo
from ...photos.resize import Resizing
from ..benchmark.methods import Method
from ..benchmark.sets import BenchmarkSet, Item
from ..scores import TRUTH, Score
from .cache import Cache
from .metrics import METRICS, RESIZED, VERSION, Metric
from .planes import Planes, planes

logger = logging.getLogger(__name__)

Values = dict[str, float]
"""Values by metric key."""


class Frame(NamedTuple):
    """One image and each method's result for it, None if missing."""

    item: Item
    results: dict[str, Path | None]


class FrameJob(NamedTuple):
    """One image of a set to measure, and the previous frame if the images are a sequence."""

    set: str
    frame: Frame
    before: Frame | None

    def metrics(self, method: str) -> list[Metric]:
        """The metrics that apply to this method's result."""
        available = {
            "nothing": True,
            "input": True,
            "truth": self.frame.item.truth is not None and method != TRUTH,
            "before": self.before is not None,
        }
        return [metric for metric in METRICS if available[metric.against]]


class Measured(NamedTuple):
    """The values of one result; ``values`` is None if they are cached or an error occurred."""

    key: str = ""
    """Cache key: a hash of the content of all files involved."""

    values: Values | None = None
    error: str = ""


def measure(
    sets: Sequence[BenchmarkSet],
    methods: Sequence[Method],
    cache: Path,
    *,
    workers: int = 0,
    frames: bool = False,
) -> list[Score]:
    """Compute all ``METRICS`` for each method and image.

    The color photos are measured too, as the method ``truth``, but not against themselves. The
    values of a missing or unreadable result are NaN; unreadable results are logged. ``resized`` is
    1 for a result whose size differs from the photo's, else 0.

    Args:
        cache: File for the values; created if needed.
        workers: Worker processes; 0 measures in this process.
        frames: Whether images whose names end in consecutive numbers are consecutive frames.
            Flicker is only measured then, because ordinary photos are often numbered too.

    Raises:
        ColorFluxError: as :meth:`Method.results`, or if the cache cannot be used or a worker
            process is killed.
    """
    kept = Cache(cache)
    jobs = [job for benchmark in sets for job in _jobs(benchmark, methods, frames)]
    scores: list[Score] = []
    for job, found in zip(jobs, _measure_all(jobs, frozenset(kept), workers), strict=True):
        image = job.frame.item.name
        for method, measured in found.items():
            if measured.error:
                logger.warning("%s's %s counts as missing: %s", method, image, measured.error)
            if measured.values is not None:
                kept.add(measured.key, measured.values)
            values = kept.get(measured.key, {})
            keys = [*(metric.column.key for metric in job.metrics(method)), RESIZED]
            scores += [
                Score(job.set, method, image, key, values.get(key, math.nan)) for key in keys
            ]
    return scores


def _jobs(benchmark: BenchmarkSet, methods: Sequence[Method], frames: bool) -> Iterator[FrameJob]:
    results = {method.name: method.results(benchmark) for method in methods}
    by_name = {}
    for item in benchmark.items:
        of_item = {method: found.get(item.name) for method, found in results.items()}
        by_name[item.name] = Frame(item, of_item | ({TRUTH: item.truth} if item.truth else {}))
    before = _names_before(by_name) if frames else {}
    for name, frame in by_name.items():
        yield FrameJob(benchmark.name, frame, by_name.get(before.get(name, "")))


def _names_before(names: Iterable[str]) -> dict[str, str]:
    """Map each name to the one whose trailing number is one less."""
    numbered = {
        (match[1], int(match[2])): name
        for name in names
        if (match := re.fullmatch(r"(.*?)(\d+)", name))
    }
    return {
        name: numbered[series, number - 1]
        for (series, number), name in numbered.items()
        if (series, number - 1) in numbered
    }


class _FrameJobs(Dataset[dict[str, Measured]]):
    def __init__(self, jobs: Sequence[FrameJob], known: frozenset[str]) -> None:
        self.jobs, self.known = jobs, known

    def __len__(self) -> int:
        return len(self.jobs)

    def __getitem__(self, index: int) -> dict[str, Measured]:
        return _measure_job(self.jobs[index], self.known)


def _measure_all(
    jobs: Sequence[FrameJob], known: frozenset[str], workers: int
) -> Iterator[dict[str, Measured]]:
    """Measure the jobs and yield results by method, in order; each process uses one thread."""
    measured = load(
        _FrameJobs(jobs, known),
        min(workers, len(jobs)),
        batch_size=None,
        multiprocessing_context="spawn" if workers and jobs else None,
    )
    yield from tqdm(measured, total=len(jobs), desc="metrics", unit="image")


def _measure_job(job: FrameJob, known: frozenset[str]) -> dict[str, Measured]:
    """Results by method. The reference images are read once, and only if needed."""
    found = {}
    references: _References | None = None
    for method, result in job.frame.results.items():
        found[method] = Measured()
        if result is None:
            continue
        try:
            key = _cache_key(job, method)
            if key in known:
                found[method] = Measured(key)
                continue
            references = references or _references(job)
            found[method] = Measured(key, _values(job, method, result, references))
        except ColorFluxError as error:
            found[method] = Measured(error=str(error))
        except OSError as error:
            reason = f"{error.filename} cannot be read: {error.strerror}"
            found[method] = Measured(error=reason)
    return found


def _cache_key(job: FrameJob, method: str) -> str:
    """Hash everything the values depend on."""
    keys = [metric.column.key for metric in job.metrics(method)]
    files = (
        sha256(path.read_bytes()).encode() if path else b"no file"
        for frame in filter(None, (job.frame, job.before))
        for path in (frame.results.get(method), frame.item.input, frame.item.truth)
    )
    return sha256(f"{VERSION} {keys}".encode(), *files)


class _References(NamedTuple):
    """The images a result is compared with, all at the same size."""

    size: Size
    input: Planes
    truth: Planes | None
    input_before: Planes | None


def _references(job: FrameJob) -> _References:
    """Load the references at the size of the truth or, without one, of the input.

    Raises ColorFluxError as :func:`load_photo`.
    """
    item = job.frame.item
    photo = load_photo(item.input)
    truth = load_photo(item.truth) if item.truth else None
    size = (truth or photo).size
    return _References(
        size,
        _planes(photo, size),
        _planes(truth, size) if truth else None,
        _planes(load_photo(job.before.item.input), size) if job.before else None,
    )


@torch.inference_mode()
def _values(job: FrameJob, method: str, path: Path, references: _References) -> Values:
    """Compute the values of one result; flicker requires a readable result for the previous frame.

    Raises:
        ColorFluxError: if the result cannot be read.
    """
    photo = load_photo(path)
    size, gray, truth, gray_before = references
    result = _planes(photo, size)
    against = {"nothing": (result, result), "input": (result, gray)}
    if truth:
        against["truth"] = (result, truth)
    if job.before and gray_before and (path_before := job.before.results.get(method)):
        with suppress(ColorFluxError):
            before = _planes(load_photo(path_before), size)
            against["before"] = (_change(before, result), _change(gray_before, gray))
    values = {
        metric.column.key: metric.value(*against[metric.against]).item()
        for metric in job.metrics(method)
        if metric.against in against
    }
    return values | {RESIZED: float(photo.size != size)}


def _planes(photo: Photo, size: Size) -> Planes:
    pixels = photo.pixels.contiguous()
    if photo.size == size:
        return planes(unit_range(pixels))
    return planes(Resizing(photo.size, size).to_canvas(pixels))


def _change(before: Planes, after: Planes) -> Planes:
    return Planes(*(now - then for then, now in zip(before, after, strict=True)))
