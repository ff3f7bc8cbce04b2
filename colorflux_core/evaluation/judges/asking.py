"""All methods' results before a judge: scores, reasons, and what is missing."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from textwrap import shorten
from typing import NamedTuple

from tqdm import tqdm

from ...digest import sha256
from ...errors import ColorFluxError
from ..benchmark.methods import Method
from ..benchmark.sets import BenchmarkSet
from ..metrics.cache import Cache
from ..scores import Score
from .backend import Ask, Backend, NoVerdict, Unanswered
from .judge import Judge
from .limits import ATTEMPTS, PATIENCE
from .replies import Reading
from .template import Turn


class Case(NamedTuple):
    """One image of a set, and one method's result for it if there is one."""

    set: str
    method: str
    image: str
    gray: Path
    colorized: Path | None


class Verdicts(NamedTuple):
    scores: list[Score]
    """For each image of each set that the method has results for; NaN where there is no verdict."""

    rationales: dict[tuple[str, str, str], str]
    """By set, method and image."""

    provenance: dict[str, str]
    """Judge, model, template (its hash) and settings: figures compare where all are the same."""

    failures: list[str]
    """Why a result has no scores, a line for each."""


def judge_methods(
    judge: Judge,
    backend: Backend,
    sets: Sequence[BenchmarkSet],
    methods: Sequence[Method],
    cache: Path,
    *,
    attempts: int = ATTEMPTS,
    concurrency: int = 1,
    patience: int = PATIENCE,
    quiet: bool = False,
) -> Verdicts:
    """Ask about every result, ``concurrency`` at a time; what the cache knows is not asked again.

    A judge whose reply cannot be read is told so and asked again, ``attempts`` times in all. A
    result that no reply comes for has no scores in this run; the next one asks about it again.

    Raises:
        ColorFluxError: when the judge cannot be asked at all, or leaves ``patience`` requests in a
            row without an answer, or the cache cannot be used. Replies up to then are kept.
    """
    cases = list(all_cases(sets, methods))
    known = Cache(cache)
    readings: dict[Case, Reading] = {}
    failures: list[str] = []

    async def hear_all() -> None:
        questions = [
            (case, judge.template.turns(case.gray, case.colorized))
            for case in cases
            if case.colorized
        ]
        waiting = iter(questions)
        with tqdm(
            total=len(questions), unit="image", desc=judge.name, disable=quiet or None
        ) as bar:
            async with backend.opened() as ask:
                asked = remembered(ask, backend, known, patience)

                async def work() -> None:
                    for case, turns in waiting:
                        try:
                            readings[case] = await reading_of(judge, turns, asked, attempts)
                        except (NoVerdict, OSError) as error:
                            failures.append(f"{case.set}/{case.image}, {case.method}: {error}")
                        bar.update()

                await asyncio.gather(*(work() for _ in range(concurrency)))

    asyncio.run(hear_all())
    missing = Reading(dict.fromkeys(judge.metrics, math.nan), "")
    return Verdicts(
        [
            Score(case.set, case.method, case.image, metric, value)
            for case in cases
            for metric, value in readings.get(case, missing).values.items()
        ],
        {case[:3]: reading.rationale for case, reading in readings.items()},
        {
            "judge": judge.name,
            "model": backend.model,
            "template": judge.template.fingerprint,
            **{name: str(value) for name, value in backend.settings.items()},
        },
        failures,
    )


def all_cases(sets: Sequence[BenchmarkSet], methods: Sequence[Method]) -> Iterator[Case]:
    for benchmark in sets:
        for method in methods:
            results = method.results(benchmark)
            for item in benchmark.items if results else ():
                result = results.get(item.name)
                yield Case(benchmark.name, method.name, item.name, item.input, result)


async def reading_of(judge: Judge, turns: tuple[Turn, ...], ask: Ask, attempts: int) -> Reading:
    """Raises NoVerdict when no reply can be read, and what ``ask`` does."""
    for _ in range(attempts):
        reply = await ask(turns)
        if reading := judge.read(reply):
            return reading
        # Decoding is greedy: to the same question there is but the same reply.
        turns = (*turns, Turn("assistant", (reply,)), Turn("user", (judge.reminder,)))
    last = shorten(reply, 100, placeholder="...")
    raise NoVerdict(f"none of {attempts} replies could be read, the last is: {last}")


def remembered(ask: Ask, backend: Backend, cache: Cache, patience: int) -> Ask:
    """Asks what the cache does not know, until too much in a row goes without an answer."""
    silences = 0

    async def remembering(turns: Sequence[Turn]) -> str:
        nonlocal silences
        key = request_key(backend.model, backend.settings, turns)
        if key not in cache:
            try:
                reply = await ask(turns)
            except Unanswered as error:
                silences += 1
                if silences >= patience:
                    raise ColorFluxError(f"{error} That was {silences} times in a row.") from error
                raise
            silences = 0
            cache.add(key, reply)
        return cache[key]

    return remembering


def request_key(model: str, settings: Mapping[str, object], turns: Sequence[Turn]) -> str:
    """The hash of all that a reply depends on; of images, what is in the files."""
    said = [
        (
            role,
            [
                part if isinstance(part, str) else {"sha256": sha256(part.read_bytes())}
                for part in parts
            ],
        )
        for role, parts in turns
    ]
    asked = json.dumps([model, settings, said], sort_keys=True)
    return sha256(asked.encode())
