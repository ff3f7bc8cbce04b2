"""Intervals that hold the truth as often as they say, and comparisons that count right."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from colorflux_core.evaluation.report.statistics import compare, mean_interval


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(20)


def holds(values: np.ndarray, truth: float) -> bool:
    _, low, high = mean_interval(values)
    return low <= truth <= high


def test_many_gaussian_values_have_students_interval(rng: np.random.Generator) -> None:
    values = rng.normal(7, 2, size=400)
    mean, low, high = mean_interval(values)
    expected = stats.t.interval(0.95, 399, loc=values.mean(), scale=stats.sem(values))
    assert mean == pytest.approx(values.mean())
    assert (low, high) == pytest.approx(expected, abs=0.03 * (expected[1] - expected[0]))


def test_many_skewed_values_have_scipys_bootstrap_interval(rng: np.random.Generator) -> None:
    values = rng.exponential(size=400)
    bootstrap = stats.bootstrap((values,), np.mean, method="percentile", rng=1)
    expected = bootstrap.confidence_interval
    _, low, high = mean_interval(values)
    assert (low, high) == pytest.approx(expected, abs=0.04 * (expected.high - expected.low))


@pytest.mark.parametrize("images", [8, 60])
def test_the_interval_holds_the_mean_of_gaussian_images_in_95_of_100_cases(
    images: int, rng: np.random.Generator
) -> None:
    held = [holds(rng.normal(size=images), 0) for _ in range(800)]
    assert 0.93 <= np.mean(held) <= 0.975


@pytest.mark.parametrize("seeds", [3, 6])
def test_it_does_so_when_training_seeds_differ_as_well(
    seeds: int, rng: np.random.Generator
) -> None:
    held, held_by_the_images_alone = [], []
    for _ in range(250):
        values = rng.normal(size=(seeds, 1)) + rng.normal(size=40) + rng.normal(size=(seeds, 40))
        held.append(holds(values, 0))
        held_by_the_images_alone.append(holds(values.mean(axis=0), 0))
    assert np.mean(held) >= 0.89
    assert np.mean(held_by_the_images_alone) < 0.65


def test_images_are_not_more_for_being_seen_by_several_seeds(rng: np.random.Generator) -> None:
    images = rng.normal(size=50)
    once, thrice = mean_interval(images), mean_interval(np.stack([images] * 3))
    assert thrice.high - thrice.low == pytest.approx(once.high - once.low, rel=0.05)


def test_an_interval_moves_and_grows_with_its_values(rng: np.random.Generator) -> None:
    values = rng.normal(size=(3, 20))
    expected = [5 + 2 * bound for bound in mean_interval(values)]
    assert mean_interval(5 + 2 * values) == pytest.approx(expected)


def test_an_interval_follows_from_its_seed(rng: np.random.Generator) -> None:
    values = rng.normal(size=(2, 30))
    assert mean_interval(values, seed=1) == mean_interval(values, seed=1)
    assert mean_interval(values, seed=1).low != mean_interval(values, seed=2).low


def test_what_has_no_value_is_as_if_it_were_not_there(rng: np.random.Generator) -> None:
    values = rng.normal(size=20)
    with_gaps = np.insert(values, [0, 7, 7, 20], np.nan)
    assert mean_interval(with_gaps) == pytest.approx(mean_interval(values))


def test_a_gap_in_one_seed_is_filled_by_the_others_of_its_image() -> None:
    values = [[1.0, 2, 3], [math.nan, 4, 5]]
    assert mean_interval(values).mean == pytest.approx((1 + 3 + 4) / 3)


@pytest.mark.parametrize("values", [[], [math.nan], [[math.nan, math.nan], [math.nan, math.nan]]])
def test_nothing_has_no_mean(values: list[float]) -> None:
    assert all(math.isnan(figure) for figure in mean_interval(values))


def test_one_image_has_a_mean_and_no_interval() -> None:
    mean, low, high = mean_interval([4.5, math.nan])
    assert mean == 4.5
    assert math.isnan(low) and math.isnan(high)


def test_what_never_varies_is_certain() -> None:
    assert mean_interval(np.full((3, 9), 4.5)) == (4.5, 4.5, 4.5)


def test_an_infinite_value_is_told() -> None:
    mean, low, _ = mean_interval([1, math.inf, 2])
    assert mean == math.inf
    assert math.isnan(low)


def test_pairs_see_what_means_cannot(rng: np.random.Generator) -> None:
    images = 100 * rng.normal(size=30)
    first, second = images + rng.normal(1, 0.5, size=30), images
    apart = mean_interval(first), mean_interval(second)
    assert apart[0].low < apart[1].high
    _, low, high = compare(first, second, higher_is_better=True).difference
    assert 0 < low < 1 < high


def test_wins_ties_and_losses_are_of_images_that_both_have() -> None:
    first = [1, 2, 3, 4, math.nan, 6]
    second = [0, 2, 5, 3, 1, math.nan]
    better = compare(first, second, higher_is_better=True)
    assert (better.images, better.wins, better.ties, better.losses) == (4, 2, 1, 1)
    assert better.difference.mean == pytest.approx(0)
    worse = compare(first, second, higher_is_better=False)
    assert (worse.wins, worse.ties, worse.losses) == (1, 1, 2)
    assert worse.difference == better.difference


def test_turned_around_the_difference_turns_its_sign(rng: np.random.Generator) -> None:
    first, second = rng.normal(size=(2, 25))
    one = compare(first, second, higher_is_better=True)
    other = compare(second, first, higher_is_better=True)
    assert one.difference.mean == pytest.approx(-other.difference.mean)
    assert one.difference.low == pytest.approx(-other.difference.high, rel=0.1)
    assert (one.wins, one.losses, one.p) == (other.losses, other.wins, other.p)


def test_p_is_exact_for_few_images() -> None:
    """Six wins of six: of 64 assignments of signs, two are as extreme."""
    assert compare([1, 2, 3, 4, 5, 6], [0] * 6, higher_is_better=True).p == pytest.approx(2 / 64)


@pytest.mark.parametrize("seeds", [1, 3])
def test_of_equals_none_is_better(seeds: int, rng: np.random.Generator) -> None:
    values = rng.normal(size=(seeds, 10))
    same = compare(values, values, higher_is_better=True)
    assert (same.wins, same.ties, same.losses) == (0, 10, 0)
    assert same.difference.mean == 0
    assert same.p == 1 if seeds == 1 else math.isnan(same.p)


def test_seeds_that_differ_make_a_comparison_less_certain(rng: np.random.Generator) -> None:
    """But not what is the same in the runs of a seed, of which both may have been made."""
    images, noise = rng.normal(size=40), 0.1 * rng.normal(size=(2, 3, 40))
    training = np.array([[-1.0], [0.0], [1.0]])
    first, second = images + noise
    steady = compare(first, second, higher_is_better=True).difference
    shared = compare(first + training, second + training, higher_is_better=True).difference
    unsteady = compare(first + training, second - training, higher_is_better=True).difference
    assert steady.high - steady.low < 0.3
    assert shared == pytest.approx(steady)
    assert unsteady.high - unsteady.low > 2
    more = compare(first + training, (second + training)[:2], higher_is_better=True).difference
    assert more.high - more.low > 2


def test_methods_without_a_common_image_cannot_be_compared() -> None:
    nothing = compare([1, math.nan], [math.nan, 2], higher_is_better=True)
    assert (nothing.images, nothing.wins, nothing.ties, nothing.losses) == (0, 0, 0, 0)
    assert math.isnan(nothing.difference.mean) and math.isnan(nothing.p)
