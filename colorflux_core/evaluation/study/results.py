"""Statistics of a study: win rates with intervals, Bradley-Terry strengths, bias and agreement.

A tie counts as half a win for either side.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ...errors import ColorFluxError
from ..report.statistics import LEVEL, bootstrap_counts, student_over_normal
from .answers import Answer, answers_path, participants, read_answers
from .study import Study


class Response(NamedTuple):
    """An answer and the participant who gave it."""

    participant: str
    answer: Answer


class Bounds(NamedTuple):
    """Bounds of a 95 % confidence interval, in [0, 1]; NaN if undefined."""

    low: float
    high: float


class WinRate(NamedTuple):
    """One method against another, or against all others if ``opponent`` is empty."""

    set: str
    """A benchmark set, or empty for all of them together."""

    method: str
    opponent: str
    wins: int
    ties: int
    losses: int
    wilson: Bounds
    """Wilson's interval, which treats all answers as independent."""

    bootstrap: Bounds
    """Bootstrap over participants and images, so that it holds for other people and photos."""

    @property
    def answers(self) -> int:
        return self.wins + self.ties + self.losses

    @property
    def rate(self) -> float:
        return (self.wins + self.ties / 2) / self.answers


def read_responses(folder: Path, study: Study) -> list[Response]:
    """Read all answers that count; raises ColorFluxError if there are none or a file is damaged."""
    responses = [
        Response(name, answer)
        for name in participants(folder)
        for answer in read_answers(answers_path(folder, name), study.schedule(name))
    ]
    if not responses:
        raise ColorFluxError(f"{folder} has no answers yet: run evaluation study serve {folder}")
    return responses


def win_rates(study: Study, responses: Sequence[Response]) -> list[WinRate]:
    """Win rates of all matchups, for all sets together and then per set.

    Without a reference, also of each method against all others.
    """
    if study.reference is None:
        matchups = [*((method, "") for method in study.methods), *combinations(study.methods, 2)]
    else:
        matchups = [(study.reference, other) for other in study.methods if other != study.reference]
    sets = list(dict.fromkeys(shown.set for shown in study.shown))
    rates = [
        win_rate(responses, set, method, opponent)
        for set in ["", *(sets if len(sets) > 1 else [])]
        for method, opponent in matchups
    ]
    return [rate for rate in rates if rate is not None]


def win_rate(responses: Sequence[Response], set: str, method: str, opponent: str) -> WinRate | None:
    """The win rate in one set, or in all if ``set`` is empty; None without answers."""
    scored = [
        (one, points(one.answer, method))
        for one in responses
        if method in one.answer.pair.matchup
        and (not opponent or opponent in one.answer.pair.matchup)
        and set in ("", one.answer.pair.set)
    ]
    if not scored:
        return None
    values = [value for _, value in scored]
    return WinRate(
        set,
        method,
        opponent,
        values.count(1.0),
        values.count(0.5),
        values.count(0.0),
        wilson(sum(values), len(values)),
        two_way_bootstrap(scored),
    )


def points(answer: Answer, method: str) -> float:
    """1 if this method was chosen, 0 if the other one, 0.5 for a tie."""
    if answer.choice == "tie":
        return 0.5
    chosen = answer.pair.left if answer.choice == "left" else answer.pair.right
    return float(chosen == method)


def wilson(successes: float, trials: int) -> Bounds:
    """Wilson's score interval (1927) of a win rate; ties make it conservative."""
    if not trials:
        return Bounds(math.nan, math.nan)
    z = NormalDist().inv_cdf((1 + LEVEL) / 2)
    share = successes / trials
    center = (share + z**2 / (2 * trials)) / (1 + z**2 / trials)
    half = z * math.sqrt(share * (1 - share) / trials + z**2 / (4 * trials**2))
    half /= 1 + z**2 / trials
    return Bounds(max(0.0, center - half), min(1.0, center + half))


def two_way_bootstrap(scored: Sequence[tuple[Response, float]]) -> Bounds:
    """Pigeonhole bootstrap (Owen 2007) of a win rate, resampling participants and photos.

    Uses the small-sample corrections of ``mean_interval``. It is conservative: for answers that
    depend on neither participant nor photo, the interval is up to 1.7 times too wide. The bounds
    are NaN if all answers are the same.

    Args:
        scored: Answers with their points, from :func:`points`.
    """
    people, rows = np.unique([one.participant for one, _ in scored], return_inverse=True)
    photos, columns = np.unique([one.answer.pair.image for one, _ in scored], return_inverse=True)
    total, times = np.zeros((2, len(people), len(photos)))
    np.add.at(total, (rows, columns), [value for _, value in scored])
    np.add.at(times, (rows, columns), 1)
    drawn_people, drawn_photos = (
        bootstrap_counts(count, 0, stream) if count > 1 else np.ones((1, 1))
        for stream, count in enumerate(total.shape)
    )
    answers = np.sum(drawn_people @ times * drawn_photos, axis=1)
    rates = np.sum(drawn_people @ total * drawn_photos, axis=1)[answers > 0] / answers[answers > 0]
    low, high = np.quantile(rates, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    if low == high:
        return Bounds(math.nan, math.nan)
    rate = total.sum() / times.sum()
    widening = student_over_normal([total.sum(axis) / times.sum(axis) for axis in (0, 1)])
    return Bounds(
        max(0.0, float(rate + widening * (low - rate))),
        min(1.0, float(rate + widening * (high - rate))),
    )


def bradley_terry(study: Study, responses: Sequence[Response]) -> dict[str, float]:
    """Bradley-Terry strengths (1952) by method, as log odds against the average method.

    One tie between each pair of methods is added to the answers, so that the strength of a method
    that never lost is finite. The likelihood is maximized by Hunter's (2004) MM algorithm.
    """
    count = len(study.methods)
    wins: NDArray[np.float64] = np.full((count, count), 0.5) - 0.5 * np.eye(count)
    for _, answer in responses:
        left, right = (study.methods.index(name) for name in answer.pair[2:])
        value = points(answer, answer.pair.left)
        wins[left, right] += value
        wins[right, left] += 1 - value
    played = wins + wins.T
    log_strength = np.zeros(count)
    for _ in range(10_000):
        strength = np.exp(log_strength)
        updated = np.log(wins.sum(1) / (played / np.add.outer(strength, strength)).sum(1))
        updated -= updated.mean()
        step = np.abs(updated - log_strength).max()
        log_strength = updated
        if step < 1e-10:
            break
    return dict(zip(study.methods, log_strength.tolist(), strict=True))


def position_bias(responses: Sequence[Response]) -> tuple[int, int]:
    """Count the answers that chose the left image, and all answers except ties."""
    decided = [one.answer.choice for one in responses if one.answer.choice != "tie"]
    return decided.count("left"), len(decided)


def agreement(responses: Sequence[Response]) -> tuple[int, int]:
    """Count the pairs of participants with the same answer, and all that had the same question."""
    by_question: dict[tuple[str, str, frozenset[str]], list[float]] = {}
    for one in responses:
        pair = one.answer.pair
        value = points(one.answer, min(pair.matchup))
        by_question.setdefault((pair.set, pair.image, pair.matchup), []).append(value)
    pairs = [pair for values in by_question.values() for pair in combinations(values, 2)]
    return sum(one == other for one, other in pairs), len(pairs)
