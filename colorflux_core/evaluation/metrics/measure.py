"""Every method's result for every image through the metrics, each picture only once.

Values are kept by the content of the files that they depend on, so that an interrupted or repeated
run goes on.
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
from ...photos.color import unit_range
from ...photos.photo import Photo, load_photo
from ...photos.resize import Resizing, Size
from ..benchmark.methods import Method
from ..benchmark.sets import BenchmarkSet, Item
from ..report.tables import TRUTH
from ..scores import Score
from .cache import Cache
from .metrics import METRICS, RESIZED, VERSION, Metric
from .planes import Planes, planes

logger = logging.getLogger(__name__)

Values = dict[str, float]
"""By the metric's key."""


class Frame(NamedTuple):
    """One image, and by method the result for it, if there is one."""

    item: Item
    results: dict[str, Path | None]


class Job(NamedTuple):
    """One image of a set, and the frame before it where images are a sequence."""

    set: str
    frame: Frame
    before: Frame | None

    def metrics(self, method: str) -> list[Metric]:
        """That there should be a value of for the method's result."""
        there = {
            "nothing": True,
            "input": True,
            "truth": self.frame.item.truth is not None and method != TRUTH,
            "before": self.before is not None,
        }
        return [metric for metric in METRICS if there[metric.against]]


class Measured(NamedTuple):
    """``key`` is of the content; ``values`` are None if known already, or for a ``fault``."""

    key: str = ""
    values: Values | None = None
    fault: str = ""


def measure(
    sets: Sequence[BenchmarkSet],
    methods: Sequence[Method],
    cache: Path,
    *,
    workers: int = 0,
    frames: bool = False,
) -> list[Score]:
    """Scores of all ``METRICS``, for each image that a method should have a result for.

    The color photos are measured as well, as the method ``truth``, but not against themselves.
    Where there is no result, or one that cannot be read, which is logged, the values are NaN.
    ``resized`` is 1 for a result that has another size than the photo, else 0.

    Args:
        cache: A file to keep the values in; made if there is none.
        workers: Processes to work in; 0 for this one.
        frames: Images whose names end in neighbouring numbers are neighbouring frames. Only then
            is there flicker, for photos may be numbered as well.

    Raises:
        ColorFluxError: as :meth:`Method.results`, when the cache cannot be read or written, or a
            process is ended from outside.
    """
    kept = Cache(cache)
    jobs = [job for benchmark in sets for job in _jobs(benchmark, methods, frames)]
    scores: list[Score] = []
    for job, found in zip(jobs, _work(jobs, frozenset(kept), workers), strict=True):
        image = job.frame.item.name
        for method, measured in found.items():
            if measured.fault:
                logger.warning("%s's %s counts as missing: %s", method, image, measured.fault)
            if measured.values is not None:
                kept.add(measured.key, measured.values)
            values = kept.get(measured.key, {})
            keys = [*(metric.column.key for metric in job.metrics(method)), RESIZED]
            scores += [
                Score(job.set, method, image, key, values.get(key, math.nan)) for key in keys
            ]
    return scores


def _jobs(benchmark: BenchmarkSet, methods: Sequence[Method], frames: bool) -> Iterator[Job]:
    results = {method.name: method.results(benchmark) for method in methods}
    by_name = {}
    for item in benchmark.items:
        of_item = {method: found.get(item.name) for method, found in results.items()}
        by_name[item.name] = Frame(item, of_item | ({TRUTH: item.truth} if item.truth else {}))
    before = _names_before(by_name) if frames else {}
    for name, frame in by_name.items():
        yield Job(benchmark.name, frame, by_name.get(before.get(name, "")))


def _names_before(names: Iterable[str]) -> dict[str, str]:
    """By a name, the one that ends in the number before its own."""
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


class _Jobs(Dataset[dict[str, Measured]]):
    def __init__(self, jobs: Sequence[Job], known: frozenset[str]) -> None:
        self.jobs, self.known = jobs, known

    def __len__(self) -> int:
        return len(self.jobs)

    def __getitem__(self, index: int) -> dict[str, Measured]:
        return _measured(self.jobs[index], self.known)


def _work(
    jobs: Sequence[Job], known: frozenset[str], workers: int
) -> Iterator[dict[str, Measured]]:
    """What comes of each job, in their order; every process computes with one thread."""
    measured = load(
        _Jobs(jobs, known),
        min(workers, len(jobs)),
        batch_size=None,
        multiprocessing_context="spawn" if workers and jobs else None,
    )
    yield from tqdm(measured, total=len(jobs), desc="metrics", unit="image")


def _measured(job: Job, known: frozenset[str]) -> dict[str, Measured]:
    """By method. What all results are held against is read once, and only when it is needed."""
    found = {}
    references: _References | None = None
    for method, result in job.frame.results.items():
        found[method] = Measured()
        if result is None:
            continue
        try:
            key = _content(job, method)
            if key in known:
                found[method] = Measured(key)
                continue
            references = references or _references(job)
            found[method] = Measured(key, _values(job, method, result, references))
        except ColorFluxError as error:
            found[method] = Measured(fault=str(error))
        except OSError as error:
            fault = f"{error.filename} cannot be read: {error.strerror}"
            found[method] = Measured(fault=fault)
    return found


def _content(job: Job, method: str) -> str:
    """A hash of all that the values depend on."""
    keys = [metric.column.key for metric in job.metrics(method)]
    files = (
        sha256(path.read_bytes()).encode() if path else b"no file"
        for frame in filter(None, (job.frame, job.before))
        for path in (frame.results.get(method), frame.item.input, frame.item.truth)
    )
    return sha256(f"{VERSION} {keys}".encode(), *files)


class _References(NamedTuple):
    """What the results for an image are held against, at one size."""

    size: Size
    given: Planes
    truth: Planes | None
    given_before: Planes | None


def _references(job: Job) -> _References:
    """At the size of the truth, or else of the input. Raises ColorFluxError as load_photo."""
    item = job.frame.item
    given = load_photo(item.input)
    truth = load_photo(item.truth) if item.truth else None
    size = (truth or given).size
    return _References(
        size,
        _planes(given, size),
        _planes(truth, size) if truth else None,
        _planes(load_photo(job.before.item.input), size) if job.before else None,
    )


@torch.inference_mode()
def _values(job: Job, method: str, path: Path, references: _References) -> Values:
    """Without a readable result for the frame before there is no flicker.

    Raises ColorFluxError when the result itself cannot be read.
    """
    photo = load_photo(path)
    size, given, truth, given_before = references
    result = _planes(photo, size)
    against = {"nothing": (result, result), "input": (result, given)}
    if truth:
        against["truth"] = (result, truth)
    if job.before and given_before and (path_before := job.before.results.get(method)):
        with suppress(ColorFluxError):
            before = _planes(load_photo(path_before), size)
            against["before"] = (_change(before, result), _change(given_before, given))
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
