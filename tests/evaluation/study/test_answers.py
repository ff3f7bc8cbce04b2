"""Nothing that was answered is lost, and nothing counts twice."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from colorflux_core.errors import ColorFluxError
from colorflux_core.evaluation.study.answers import (
    answers_path,
    participant_name,
    participants,
    read_answers,
    record,
)
from colorflux_core.evaluation.study.design import Pair
from tests.evaluation.study.study_runs import ROOT

PLAN = [Pair("real", f"photo{index}", "a", "b") for index in range(400)]


def choices(path: Path) -> list[str]:
    return [answer.choice for answer in read_answers(path, PLAN)]


def test_answers_and_undoing_are_lines(tmp_path: Path) -> None:
    path = tmp_path / "answers-ab.jsonl"
    assert record(path, PLAN, 0, "left") == 1
    assert record(path, PLAN, 1, "tie") == 2
    assert record(path, PLAN, 1, "undo") == 1
    assert record(path, PLAN, 1, "right") == 2
    assert choices(path) == ["left", "right"]
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["choice"] for line in lines] == ["left", "tie", "undo", "right"]
    assert lines[3].items() >= {"set": "real", "image": "photo1", "left": "a", "right": "b"}.items()


def test_an_answer_is_on_the_disk_before_it_is_confirmed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "answers-ab.jsonl"
    synced: list[bytes] = []
    monkeypatch.setattr(os, "fsync", lambda _: synced.append(path.read_bytes()))
    record(path, PLAN, 0, "left")
    assert synced == [path.read_bytes()]


def test_what_is_sent_twice_or_out_of_turn_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "answers-ab.jsonl"
    record(path, PLAN, 0, "left")
    record(path, PLAN, 1, "left")
    before = path.read_bytes()
    for index, choice in ((0, "left"), (1, "right"), (3, "left"), (0, "undo"), (2, "undo")):
        assert record(path, PLAN, index, choice) == 2
    assert record(path, PLAN[:2], 2, "left") == 2
    assert path.read_bytes() == before
    # As two servers at once might leave it.
    path.write_bytes(before + before.splitlines(keepends=True)[-1])
    assert choices(path) == ["left", "left"]


@pytest.mark.parametrize("kept", [0, 1, 20, -1])
def test_a_torn_last_line_was_never_confirmed(tmp_path: Path, kept: int) -> None:
    path = tmp_path / "answers-ab.jsonl"
    for index in range(3):
        record(path, PLAN, index, "left")
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:2]) + lines[2][:kept])
    assert choices(path) == ["left", "left"]
    assert record(path, PLAN, 2, "right") == 3
    assert choices(path) == ["left", "left", "right"]


LINE = {"pair": 1, "choice": "left", **PLAN[1]._asdict()}


@pytest.mark.parametrize(
    "line",
    [
        "what?",
        "[]",
        '{"pair": 1}',
        json.dumps(LINE | {"choice": "both"}),
        json.dumps(LINE | {"left": "b", "right": "a"}),
        json.dumps(LINE | {"pair": 9, "image": "photo9"}),
        json.dumps(LINE | {"pair": -1, "image": "photo399"}),
        json.dumps(LINE | {"pair": 999}),
    ],
)
def test_a_line_of_another_study_is_refused_not_skipped(tmp_path: Path, line: str) -> None:
    path = tmp_path / "answers-ab.jsonl"
    record(path, PLAN, 0, "left")
    path.write_text(path.read_text() + line + "\n")
    with pytest.raises(ColorFluxError, match=r"answers-ab.jsonl, line 2"):
        read_answers(path, PLAN)


def test_a_killed_process_loses_nothing_that_it_confirmed(tmp_path: Path) -> None:
    path = tmp_path / "answers-ab.jsonl"
    script = f"""
from pathlib import Path
from colorflux_core.evaluation.study.answers import *
from colorflux_core.evaluation.study.design import Pair
path, schedule = Path({str(path)!r}), [Pair("real", f"photo{{i}}", "a", "b") for i in range(400)]
for index in range(len(read_answers(path, schedule)), 400):
    print(record(path, schedule, index, ("left", "right")[index % 2]), flush=True)
"""
    rng = random.Random(0)
    confirmed = 0
    for _ in range(3):
        with subprocess.Popen(
            [sys.executable, "-c", script], cwd=ROOT, stdout=subprocess.PIPE, text=True
        ) as process:
            assert process.stdout
            for _ in range(rng.randint(5, 40)):
                confirmed = int(process.stdout.readline())
            process.send_signal(signal.SIGKILL)
            confirmed = max([confirmed, *map(int, process.stdout.read().split())])
        found = choices(path)
        assert confirmed <= len(found) <= confirmed + 1
        assert found == [("left", "right")[index % 2] for index in range(len(found))]


def test_participants_by_any_writing_of_their_name(tmp_path: Path) -> None:
    assert {participant_name(name) for name in ("A. B.", " a b ", "A-B", "a/b")} == {"a-b"}
    assert participant_name("Ærøskøbing 王") == "ærøskøbing-王"
    assert participant_name("../../etc/passwd") == "etc-passwd"
    for name in ("", " ", "..", "/", "a" * 41):
        with pytest.raises(ColorFluxError, match="name or initials"):
            participant_name(name)
    for name in ("b", "a-b"):
        record(answers_path(tmp_path, name), PLAN, 0, "left")
    assert participants(tmp_path) == ["a-b", "b"]
