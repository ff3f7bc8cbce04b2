"""Win rates, intervals and strengths against closed forms and independent implementations."""

from __future__ import annotations

import csv
import math
import random
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest
from scipy import optimize, stats

from colorflux_core.errors import ColorFluxError
from colorflux_core.evaluation.study.answers import Answer, Choice, answers_path, record
from colorflux_core.evaluation.study.create import create_study
from colorflux_core.evaluation.study.design import Pair
from colorflux_core.evaluation.study.report import write_results
from colorflux_core.evaluation.study.results import (
    Response,
    agreement,
    bradley_terry,
    position_bias,
    wilson,
    win_rate,
    win_rates,
)
from colorflux_core.evaluation.study.study import Shown, Study
from tests.evaluation.study.study_runs import bench, results


def given(participant: str, image: str, left: str, right: str, choice: Choice) -> Response:
    return Response(participant, Answer(Pair("real", image, left, right), choice))


def study(*methods: str, reference: str | None = None) -> Study:
    return Study(methods, reference, (Shown("real", "x", "", {}),), token="")


def random_answers(skill: dict[str, float], count: int, seed: int = 0) -> list[Response]:
    """The better a method, the more often it wins: Bradley and Terry's model itself."""
    rng = random.Random(seed)
    answers = []
    for index in range(count):
        left, right = rng.sample([*skill], 2)
        wins = rng.random() < 1 / (1 + math.exp(skill[right] - skill[left]))
        choice: Choice = "left" if wins else "right"
        answers.append(given(f"p{index % 7}", f"photo{index % 11}", left, right, choice))
    return answers


@pytest.mark.parametrize(("wins", "trials"), [(0, 1), (1, 1), (3, 10), (10, 10), (193, 250)])
def test_wilson_is_scipys(wins: int, trials: int) -> None:
    expected = stats.binomtest(wins, trials).proportion_ci(method="wilson")
    assert wilson(wins, trials) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_ties_count_half_and_sides_do_not() -> None:
    answers = [
        given("p", "1", "a", "b", "left"),
        given("p", "2", "b", "a", "left"),
        given("p", "3", "b", "a", "right"),
        given("p", "4", "a", "b", "tie"),
        given("p", "4", "a", "c", "right"),
    ]
    rate = win_rate(answers, "", "a", "b")
    assert rate is not None
    assert (rate.wins, rate.ties, rate.losses, rate.rate) == (2, 1, 1, 0.625)
    other = win_rate(answers, "real", "b", "a")
    assert other is not None
    assert other.rate == 1 - rate.rate
    assert other.wilson == pytest.approx([1 - bound for bound in rate.wilson[::-1]])
    everyone = win_rate(answers, "", "a", "")
    assert everyone is not None
    assert everyone.rate == 2.5 / 5
    assert win_rate(answers, "faded", "a", "b") is None
    assert position_bias(answers) == (2, 4)


def test_participants_who_differ_widen_the_second_interval() -> None:
    """Ten who each prefer one method always say less than 200 coin tosses."""
    images = [f"photo{index}" for index in range(20)]
    habits = [
        given(f"p{who}", image, "a", "b", "left" if who % 2 else "right")
        for who in range(10)
        for image in images
    ]
    coins = [
        given(f"p{who}", image, "a", "b", random.Random(f"{who}{image}").choice(["left", "right"]))
        for who in range(10)
        for image in images
    ]
    widths = []
    for answers in (habits, coins):
        rate = win_rate(answers, "", "a", "b")
        assert rate is not None
        assert rate.bootstrap.low < rate.rate < rate.bootstrap.high
        widths.append(rate.bootstrap.high - rate.bootstrap.low)
        assert rate.wilson.high - rate.wilson.low < 0.15
    assert widths[0] > 0.5
    assert widths[1] < 0.3


def test_with_a_single_photo_the_second_interval_is_students_of_the_participants() -> None:
    rates = [0.2, 0.5, 0.6, 0.9, 0.7, 0.4]
    answers = [
        given(f"p{who}", "one photo", "a", "b", "left" if index < 20 * rate else "right")
        for who, rate in enumerate(rates)
        for index in range(20)
    ]
    found = win_rate(answers, "", "a", "b")
    assert found is not None
    expected = stats.t.interval(0.95, 5, loc=np.mean(rates), scale=stats.sem(rates))
    assert found.bootstrap == pytest.approx(expected, abs=0.02)


def test_the_second_interval_holds_for_other_people_and_photos() -> None:
    """In 95 of 100 studies of 10 people and 20 photos, or more, the true rate is in it."""
    rng = np.random.default_rng(2)
    held = 0
    for _ in range(60):
        chances = 0.6 + rng.normal(0, 0.2, (10, 1)) + rng.normal(0, 0.2, (1, 20))
        wins = rng.random((10, 20)) < chances
        found = win_rate(
            [
                given(f"p{one}", f"photo{other}", "a", "b", "left" if win else "right")
                for (one, other), win in np.ndenumerate(wins)
            ],
            "",
            "a",
            "b",
        )
        assert found is not None
        held += found.bootstrap.low <= 0.6 <= found.bootstrap.high
    assert held >= 54


def test_all_the_same_answers_leave_only_wilson() -> None:
    rate = win_rate([given("p", str(n), "a", "b", "left") for n in range(9)], "", "a", "b")
    assert rate is not None
    assert (rate.rate, rate.wilson.high) == (1, 1)
    assert math.isnan(rate.bootstrap.low)


def test_strengths_are_the_most_likely_ones() -> None:
    skill = {"a": 0.9, "b": 0.1, "c": -0.2, "d": -0.8}
    answers = random_answers(skill, 300)
    names = [*skill]

    def unlikelihood(free: np.ndarray) -> float:
        strength = dict(zip(names, [*free, -sum(free)], strict=True))
        total = 0.0
        for _, (pair, choice) in answers:
            won, lost = pair[2:] if choice == "left" else pair[:1:-1]
            total += math.log1p(math.exp(strength[lost] - strength[won]))
        for one in names:  # the tie of each two
            for other in names:
                total += (
                    0.5 * math.log1p(math.exp(strength[one] - strength[other])) * (one != other)
                )
        return total

    best = optimize.minimize(unlikelihood, np.zeros(3), tol=1e-10).x
    found = bradley_terry(study(*names), answers)
    assert [*found.values()] == pytest.approx([*best, -sum(best)], abs=1e-4)
    assert [*found.values()] == pytest.approx([*skill.values()], abs=0.35)


def test_who_never_lost_has_a_strength() -> None:
    answers = [given("p", str(n), "a", "b", "left") for n in range(5)]
    found = bradley_terry(study("a", "b"), answers)
    # Five wins and half of the added tie, against the other half.
    assert found["a"] - found["b"] == pytest.approx(math.log(5.5 / 0.5))


def test_agreement_is_over_the_same_question() -> None:
    answers = [
        given("p", "1", "a", "b", "left"),
        given("q", "1", "b", "a", "right"),
        given("r", "1", "a", "b", "right"),
        given("p", "2", "a", "b", "tie"),
        given("q", "2", "b", "a", "tie"),
        given("q", "3", "b", "a", "tie"),
    ]
    assert agreement(answers) == (2, 4)
    assert agreement(answers[:1]) == (0, 0)


def test_rates_of_every_set_and_matchup() -> None:
    shown = (Shown("real", "1", "", {}), Shown("faded", "1", "", {}))
    answers = random_answers({"a": 0, "b": 0, "c": 0}, 60)
    robin = win_rates(Study(("a", "b", "c"), None, shown, token=""), answers)
    asked = [("a", ""), ("b", ""), ("c", ""), ("a", "b"), ("a", "c"), ("b", "c")]
    assert [rate[:3] for rate in robin] == [(set, *two) for set in ("", "real") for two in asked]
    against = win_rates(study("a", "b", "c", reference="b"), answers)
    assert [rate[:3] for rate in against] == [("", "b", "a"), ("", "b", "c")]


@pytest.mark.parametrize("reference", [None, "<b>|&"])
def test_the_report_of_a_study(tmp_path: Path, reference: str | None) -> None:
    images = {f"photo{index}": (30, 20) for index in range(6)}
    methods = results(
        tmp_path, {name: dict.fromkeys(images, red) for name, red in (("<b>|&", 10), ("c", 90))}
    )
    folder = tmp_path / "study"
    sets = [bench(tmp_path, "real", images)]
    made = create_study(folder, sets, methods, reference, ties=True)
    with pytest.raises(ColorFluxError, match="no answers yet"):
        write_results(folder, folder)
    for who in ("ab", "cd"):
        for index, pair in enumerate(made.schedule(who)[: 6 if who == "ab" else 3]):
            choice = "tie" if pair.image == "photo0" else ("left", "right")[pair.right == "c"]
            record(answers_path(folder, who), made.schedule(who), index, choice)
    text = write_results(folder, tmp_path / "out")
    assert "9 answers of 2 participants, 1 of whom finished" in text
    assert "| ab | 6 of 6 |" in text
    assert ("## Strengths" in text) == (reference is None)
    with (tmp_path / "out" / "results.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["opponent"] == "c"]
    assert [row["method"] for row in rows] == ["<b>|&"]
    ties = int(rows[0]["ties"])
    assert (int(rows[0]["wins"]), int(rows[0]["losses"])) == (0, 9 - ties)
    assert float(rows[0]["win_rate"]) == ties / 18
    picture = ET.parse(tmp_path / "out" / "results.svg")
    assert "tie" in [element.text for element in picture.iter()]
