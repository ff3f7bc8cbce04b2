"""Score every method's results with a judge."""

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
from .backend import Backend, Chat, NoReply, NoVerdict
from .judge import Judge
from .limits import ATTEMPTS, PATIENCE
from .parsing import Reading
from .template import Turn


class Case(NamedTuple):
    """One image of a set and one method's result for it, None if missing."""

    set: str
    method: str
    image: str
    gray: Path
    colorized: Path | None


class Verdicts(NamedTuple):
    """The outcome of a run of one judge."""

    scores: list[Score]
    """For each image of each set the method has results for; NaN without a verdict."""

    rationales: dict[tuple[str, str, str], str]
    """Keyed by (set, method, image)."""

    provenance: dict[str, str]
    """Judge, model, template hash and settings; scores are comparable only if all are equal."""

    failures: list[str]
    """One line for each result without scores, with the reason."""


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
    """Score every result with the judge.

    A result without a reply has no scores in this run; the next run tries it again.

    Args:
        cache: File for the replies; replies already in it are not requested again.
        attempts: Maximum requests per result. After a reply that cannot be parsed, the judge gets
            a reminder of the format.
        concurrency: Concurrent requests.
        patience: Consecutive requests without a reply after which the run stops.
        quiet: Whether to hide the progress bar.

    Raises:
        ColorFluxError: if the judge rejects all requests, ``patience`` is exhausted, or the cache
            cannot be used. Replies received until then are in the cache.
    """
    cases = list(all_cases(sets, methods))
    replies = Cache(cache)
    readings: dict[Case, Reading] = {}
    failures: list[str] = []

    async def run_all() -> None:
        prompts = [
            (case, judge.template.turns(case.gray, case.colorized))
            for case in cases
            if case.colorized
        ]
        queue = iter(prompts)
        with tqdm(total=len(prompts), unit="image", desc=judge.name, disable=quiet or None) as bar:
            async with backend.session() as chat:
                cached_chat = with_cache(chat, backend, replies, patience)

                async def work() -> None:
                    for case, turns in queue:
                        try:
                            readings[case] = await get_reading(judge, turns, cached_chat, attempts)
                        except (NoVerdict, OSError) as error:
                            failures.append(f"{case.set}/{case.image}, {case.method}: {error}")
                        bar.update()

                await asyncio.gather(*(work() for _ in range(concurrency)))

    asyncio.run(run_all())
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
    """Yield a case for each image of each set a method has results for."""
    for benchmark in sets:
        for method in methods:
            results = method.results(benchmark)
            for item in benchmark.items if results else ():
                result = results.get(item.name)
                yield Case(benchmark.name, method.name, item.name, item.input, result)


async def get_reading(judge: Judge, turns: tuple[Turn, ...], chat: Chat, attempts: int) -> Reading:
    """Request replies until one can be parsed; raises NoVerdict after ``attempts`` replies."""
    for _ in range(attempts):
        reply = await chat(turns)
        if reading := judge.read(reply):
            return reading
        # Decoding is greedy, so repeating the same prompt would return the same reply.
        turns = (*turns, Turn("assistant", (reply,)), Turn("user", (judge.reminder,)))
    last = shorten(reply, 100, placeholder="...")
    raise NoVerdict(f"none of {attempts} replies could be parsed; the last one: {last}")


def with_cache(chat: Chat, backend: Backend, cache: Cache, patience: int) -> Chat:
    """Wrap ``chat`` with a cache and stop after ``patience`` consecutive requests fail."""
    failures = 0

    async def cached(turns: Sequence[Turn]) -> str:
        nonlocal failures
        key = request_key(backend.model, backend.settings, turns)
        if key not in cache:
            try:
                reply = await chat(turns)
            except NoReply as error:
                failures += 1
                if failures >= patience:
                    raise ColorFluxError(
                        f"{error} {failures} consecutive requests failed."
                    ) from error
                raise
            failures = 0
            cache.add(key, reply)
        return cache[key]

    return cached


def request_key(model: str, settings: Mapping[str, object], turns: Sequence[Turn]) -> str:
    """Hash everything a reply depends on; images by their file content."""
    messages = [
        (
            role,
            [
                part if isinstance(part, str) else {"sha256": sha256(part.read_bytes())}
                for part in parts
            ],
        )
        for role, parts in turns
    ]
    request = json.dumps([model, settings, messages], sort_keys=True)
    return sha256(request.encode())
