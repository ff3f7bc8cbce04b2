"""What Qwen-score asks, by default and by a template of one's own."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from colorflux_core.errors import ColorFluxError
from colorflux_core.evaluation.judges import JUDGES
from colorflux_core.evaluation.judges.endpoint import Endpoint
from colorflux_core.evaluation.judges.qwen_score import ASPECTS, QWEN_SCORE
from colorflux_core.evaluation.judges.runner import judge_methods
from colorflux_core.evaluation.judges.template import Template, Turn, read_template
from tests.evaluation.judges.judge_server import colorized, made, serving, six

GRAY, COLOR = Path("gray.png"), Path("color.png")
FORM = 'Rate it.\n\nReply: {\n  "overall": <0-100>\n}'


def test_the_gray_image_comes_first_then_the_colorized_one() -> None:
    [turn] = QWEN_SCORE.template.turns(GRAY, COLOR)
    assert turn.role == "user"
    assert turn.parts[:2] == (GRAY, COLOR)
    [text] = turn.parts[2:]
    assert isinstance(text, str)
    form = text[text.index("Reply with one JSON object") :]
    assert re.findall(r'"(\w+)":', form) == [*ASPECTS, "rationale"]
    # The form in the question is none itself: a judge that only repeats it gives no scores.
    assert QWEN_SCORE.read(text) is None
    assert [key for key in ASPECTS if f"\n- {key}: " in text] == [*ASPECTS]


def test_judges_by_name() -> None:
    assert {name: judge.metrics for name, judge in JUDGES.items()} == {
        "qwen-score": ("CRI", "CRA", "CCS", "SCS", "AES", "OA"),
        "deqa": ("DeQA",),
        "q-insight": ("Q-Insight",),
        "visualquality-r1": ("VQ-R1",),
    }
    assert len({judge.template.fingerprint for judge in JUDGES.values()}) == len(JUDGES)


@pytest.mark.parametrize(
    ("text", "turns"),
    [
        (FORM, [Turn("user", (GRAY, COLOR, FORM))]),
        ("This: {colorized}\nof that: {gray}", [Turn("user", ("This:", COLOR, "of that:", GRAY))]),
        ("{colorized}", [Turn("user", (COLOR,))]),
        (
            f"You are strict.\n{{user}}\n{FORM}",
            [Turn("system", ("You are strict.",)), Turn("user", (GRAY, COLOR, FORM))],
        ),
        (
            "Strict.{user}{colorized} Well?",
            [Turn("system", ("Strict.",)), Turn("user", (COLOR, "Well?"))],
        ),
    ],
)
def test_a_template_of_ones_own(tmp_path: Path, text: str, turns: list[Turn]) -> None:
    path = tmp_path / "template.txt"
    path.write_text(text)
    template = read_template(path, like=QWEN_SCORE.template)
    assert [*template.turns(GRAY, COLOR)] == turns
    assert template.fingerprint != QWEN_SCORE.template.fingerprint


def test_a_template_without_images_gets_those_of_its_judge(tmp_path: Path) -> None:
    path = tmp_path / "template.txt"
    path.write_text(FORM)
    template = read_template(path, like=JUDGES["q-insight"].template)
    assert template.turns(GRAY, COLOR) == (Turn("user", (COLOR, FORM)),)


def test_a_template_is_told_by_its_words() -> None:
    assert Template("{gray} a").fingerprint == Template("\n{gray} a\n").fingerprint
    assert Template("{gray} a").fingerprint != Template("{gray} b").fingerprint


def test_a_template_that_cannot_be_read(tmp_path: Path) -> None:
    path = tmp_path / "template.txt"
    with pytest.raises(ColorFluxError, match=r"--template .* cannot be read"):
        read_template(path, like=QWEN_SCORE.template)
    path.write_text(" \n")
    with pytest.raises(ColorFluxError, match="is empty"):
        read_template(path, like=QWEN_SCORE.template)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(ColorFluxError, match="is not UTF-8 text"):
        read_template(path, like=QWEN_SCORE.template)


def test_a_template_reaches_the_model_word_for_word(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    path = tmp_path / "template.txt"
    path.write_text(f"Be strict.{{user}}{FORM}")
    template = read_template(path, like=QWEN_SCORE.template)
    benchmark = made(tmp_path / "bench", 1)
    with serving(lambda _: six()) as server:
        verdicts = judge_methods(
            replace(QWEN_SCORE, template=template),
            Endpoint(server.url, "qwen"),
            [benchmark],
            [colorized(tmp_path, benchmark)],
            tmp_path / "replies.jsonl",
            quiet=True,
        )
    system, user = server.asked[0].body["messages"]
    assert system == {"role": "system", "content": "Be strict."}
    assert user["content"][2:] == [{"type": "text", "text": FORM}]
    assert verdicts.provenance["template"] == template.fingerprint
    assert [score.value for score in verdicts.scores] == [50.0] * 6
