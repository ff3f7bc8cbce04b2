"""What counts as a score in a judge's reply, and what does not."""

from __future__ import annotations

import json

import pytest

from colorflux_core.evaluation.judges.nr_iqa import VISUALQUALITY_R1
from colorflux_core.evaluation.judges.parsing import Reading
from colorflux_core.evaluation.judges.qwen_score import ASPECTS, QWEN_SCORE
from tests.evaluation.judges.judge_server import six

FIFTY = dict.fromkeys(ASPECTS.values(), 50.0)


@pytest.mark.parametrize(
    "reply",
    [
        six(),
        f"Here is what I think:\n```json\n{six()}\n```\nI hope that {{this}} helps.",
        json.dumps(json.loads(six()), indent=4),
        six(overall="50", aesthetic=50.0, color_richness=" 50.0 "),
        six(confidence=3),
        f"<think>At first {six(overall=90)}, but no.</think>{six()}",
        f"First {six(overall=90)}, no.</think>{six()}",
        f"{six()}\n{six()}",
        six(rationale="a\nb").replace("\\n", "\n"),
        f'{{"note": "{{"}} {six()}',
    ],
)
def test_scores_that_are_plainly_there(reply: str) -> None:
    reading = QWEN_SCORE.read(reply)
    assert reading and reading.values == FIFTY


@pytest.mark.parametrize(
    "value",
    [
        101,
        -1,
        100.001,
        True,
        None,
        "",
        "fifty",
        "50/100",
        "50%",
        "5_0",
        [50],
        "nan",
        "1e1",
        10**400,
    ],
)
def test_a_value_that_is_no_score(value: object) -> None:
    assert QWEN_SCORE.read(six(overall=value)) is None


@pytest.mark.parametrize("value", [0, 100, "0", "100.0", 0.5])
def test_the_ends_of_the_scale(value: object) -> None:
    reading = QWEN_SCORE.read(six(overall=value))
    assert reading and reading.values == {**FIFTY, "OA": float(str(value))}


@pytest.mark.parametrize(
    "reply",
    [
        "",
        "Sorry, I cannot judge images.",
        six()[:-1],
        six().replace('"overall": 50', '"overall": NaN'),
        six().replace('"overall": 50', '"overall": Infinity'),
        six().replace('"overall": 50', '"overall": 1e999'),
        six().replace('"overall": 50, ', ""),
        six().replace('"overall": 50', '"overall": 50, "overall": 60'),
        six().replace('"', "'"),
        six() + six(overall=60),
        six() + six(overall=None),
        f"[{', '.join(['50'] * 6)}]",
        f'{{"scores": {six()}}}',
        f"<think>Let me see: {six()}",
        '{"a":' * 100_000,
        "color_richness: 50, color_rationality: 50, overall: 50",
    ],
)
def test_nothing_is_guessed(reply: str) -> None:
    assert QWEN_SCORE.read(reply) is None


def test_the_rationale() -> None:
    assert QWEN_SCORE.read(six()) == Reading(FIFTY, "so so")
    parts = QWEN_SCORE.read(six(rationale={"overall": "so so"}))
    assert parts and parts.rationale == '{"overall": "so so"}'
    without = QWEN_SCORE.read(f"<think>Hm. </think>{six()}".replace(', "rationale": "so so"', ""))
    assert without == Reading(FIFTY, "Hm.")


@pytest.mark.parametrize(
    "reply",
    [
        "3.42",
        " 3.42\n",
        "<answer>3.42</answer>",
        "<think>It is 4 or 3.</think>\n<answer> 3.42 </answer>",
        '<think>Blur.</think><answer>{"rating": 3.42}</answer>',
        '<answer>```json\n{"rating": "3.42"}\n```</answer>',
        '{"rating": 3.42}',
        "<answer>3.42</answer> <answer>3.42</answer>",
    ],
)
def test_a_rating(reply: str) -> None:
    reading = VISUALQUALITY_R1.read(reply)
    assert reading and reading.values == {"VQ-R1": 3.42}


@pytest.mark.parametrize(
    "reply",
    [
        "",
        "I give it 3.42",
        "<answer>3.42/5</answer>",
        "<answer>between 3 and 4</answer>",
        "<answer>0.99</answer>",
        "<answer>5.01</answer>",
        "<answer>nan</answer>",
        "<answer>3</answer><answer>4</answer>",
        '<answer>{"score": 3}</answer>',
        '<answer>{"rating": true}</answer>',
        "<think>3.42",
        "<think><answer>3.42</answer>",
    ],
)
def test_no_rating(reply: str) -> None:
    assert VISUALQUALITY_R1.read(reply) is None


def test_thoughts_are_the_rationale_of_a_rating() -> None:
    reading = VISUALQUALITY_R1.read("<think> Sharp, clean. </think><answer>4.5</answer>")
    assert reading == Reading({"VQ-R1": 4.5}, "Sharp, clean.")
