"""A schedule is balanced in every way at once, whatever the study's size."""

from __future__ import annotations

import random
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from itertools import combinations, pairwise, permutations

import pytest

from colorflux_core.evaluation.study.design import Pair, schedule, spacing
from tests.evaluation.study.study_runs import ROOT

Available = dict[tuple[str, str], list[str]]


def random_study(seed: int) -> tuple[Available, str | None, int | None]:
    """Up to six methods with gaps in their results, up to two sets of the same photos."""
    rng = random.Random(seed)
    methods = [f"m{index}" for index in range(rng.randint(2, 6))]
    sets = ("real", "faded")[: rng.randint(1, 2)]
    available = {
        (set, f"photo{index}"): [method for method in methods if rng.random() < 0.85]
        for index in range(rng.randint(1, 12))
        for set in sets
    }
    return available, rng.choice([None, "m0"]), rng.choice([None, rng.randint(1, 30)])


def imbalance(pairs: Sequence[Pair]) -> Counter[str]:
    sides = Counter(pair.left for pair in pairs)
    sides.subtract(pair.right for pair in pairs)
    return sides


@pytest.mark.parametrize("seed", range(60))
def test_sides_are_balanced_in_all_and_in_every_matchup(seed: int) -> None:
    pairs = schedule(*random_study(seed)[:2], seed, random_study(seed)[2])
    assert all(abs(sides) <= 1 for sides in imbalance(pairs).values())
    for matchup in {pair.matchup for pair in pairs}:
        of_matchup = [pair for pair in pairs if pair.matchup == matchup]
        assert all(abs(sides) <= 1 for sides in imbalance(of_matchup).values())


@pytest.mark.parametrize("seed", range(60))
def test_every_pair_comes_once_and_a_short_session_is_a_balanced_part(seed: int) -> None:
    available, reference, limit = random_study(seed)
    everything = {
        (*place, frozenset(two))
        for place, methods in available.items()
        for two in combinations(methods, 2)
        if reference in (None, *two)
    }
    pairs = [(*pair[:2], pair.matchup) for pair in schedule(available, reference, seed)]
    assert len(pairs) == len(everything)
    assert {*pairs} == everything

    part = [(*pair[:2], pair.matchup) for pair in schedule(available, reference, seed, limit)]
    assert {*part} <= everything
    assert len(part) == len({*part}) == min(len(everything), limit or len(everything))
    there, taken = (Counter(two for *_, two in some) for some in (everything, part))
    fewest = min((taken[two] for two in there if taken[two] < there[two]), default=None)
    assert fewest is None or max(taken.values()) <= fewest + 1


@pytest.mark.parametrize("seed", range(60))
def test_the_same_photo_does_not_come_again_soon(seed: int) -> None:
    pairs = schedule(*random_study(seed)[:2], seed, random_study(seed)[2])
    places: dict[str, list[int]] = {}
    for place, pair in enumerate(pairs):
        places.setdefault(pair.image, []).append(place)
    gaps = [after - before - 1 for each in places.values() for before, after in pairwise(each)]
    assert min(gaps, default=99) >= spacing(pairs)


@pytest.mark.parametrize("counts", [(1,), (3,), (2, 1), (2, 2), (3, 1, 1), (3, 2, 2), (4, 2, 1)])
def test_the_spacing_is_the_widest_up_to_half_the_photos(counts: tuple[int, ...]) -> None:
    photos = [name for name, count in zip("abc", counts, strict=False) for _ in range(count)]

    def narrowest(order: tuple[str, ...]) -> int:
        last: dict[str, int] = {}
        gap = len(counts) // 2
        for place, name in enumerate(order):
            gap = min(gap, place - last.get(name, -99) - 1)
            last[name] = place
        return gap

    widest = max(map(narrowest, {*permutations(photos)}))
    if max(counts) > 1:
        assert spacing([Pair("real", name, "a", "b") for name in photos]) == widest


def test_the_papers_study() -> None:
    """50 photos and five competitors: 250 pairs, ColorFLUX in each, on either side 125 times."""
    others = ["DDColor", "Kontext", "GPT-4o", "Qwen", "Doubao"]
    available = {("real", f"photo{index}"): ["ColorFLUX", *others] for index in range(50)}
    pairs = schedule(available, "ColorFLUX", (0, "ab"))
    assert len({*pairs}) == 250
    assert Counter(pair.left for pair in pairs)["ColorFLUX"] == 125
    assert {pair.matchup for pair in pairs} == {frozenset(("ColorFLUX", name)) for name in others}
    assert spacing(pairs) == 25
    assert pairs != schedule(available, "ColorFLUX", (0, "cd"))
    assert pairs != schedule(available, "ColorFLUX", (1, "ab"))


@pytest.mark.parametrize("limit", [5, 7, 20, 33])
def test_a_short_session_has_every_photo_equally_often(limit: int) -> None:
    available = {("real", f"photo{index}"): list("abc") for index in range(20)}
    times = Counter(pair.image for pair in schedule(available, "a", 0, limit))
    assert max(times.values()) <= 1 + min(times[image] for _, image in available)


def test_sides_and_order_are_random() -> None:
    """Over many participants, every photo comes first, and each method of a pair is left."""
    available = {("real", name): ["a", "b"] for name in "xyz"}
    schedules = [schedule(available, None, (0, who)) for who in range(300)]
    first = Counter(pairs[0].image for pairs in schedules)
    left = Counter(pair.left for pairs in schedules for pair in pairs if pair.image == "x")
    assert all(60 <= first[name] <= 140 for name in "xyz")
    assert all(110 <= left[method] <= 190 for method in "ab")


@pytest.mark.parametrize("hash_seed", "123")
def test_another_process_makes_the_same_schedule(hash_seed: str) -> None:
    """Sets of names have another order in every process."""
    available = {("real", f"photo{index}"): list("abcde") for index in range(5)}
    script = (
        "from colorflux_core.evaluation.study.design import schedule;"
        f"print([schedule({available!r}, None, 0, limit) for limit in range(20)])"
    )
    run = subprocess.run(
        [sys.executable, "-c", script],
        cwd=ROOT,
        env={"PYTHONHASHSEED": hash_seed},
        capture_output=True,
        text=True,
        check=True,
    )
    assert run.stdout.strip() == repr([schedule(available, None, 0, limit) for limit in range(20)])
