"""Storage of the participants' answers: one file each, one line per answer, synced immediately.

Answers follow the participant's schedule, so the state is just the number of answers. A line counts
only if it fits that state: an answer to the next pair, or ``undo`` of the last one. An answer that
is sent twice, or from a second window, therefore counts once.
"""

from __future__ import annotations

import json
import os
import re
import unicodedata
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Literal, NamedTuple, get_args

from ...errors import ColorFluxError
from .design import Pair

Choice = Literal["left", "right", "tie"]
UNDO = "undo"
CHOICES = frozenset((*get_args(Choice), UNDO))


class Answer(NamedTuple):
    """A participant's choice for one pair."""

    pair: Pair
    choice: Choice


def participant_name(text: str) -> str:
    """Normalize a participant's name for file names: ``A. B.`` becomes ``a-b``.

    Raises:
        ColorFluxError: if it has no letters or digits, or more than 40 characters.
    """
    name = re.sub(r"\W+", "-", unicodedata.normalize("NFKC", text).casefold()).strip("-")
    if not 0 < len(name) <= 40:
        raise ColorFluxError("Please enter a name or initials, at most 40 letters and digits.")
    return name


def answers_path(folder: Path, participant: str) -> Path:
    """The participant's file in a study's folder."""
    return folder / f"answers-{participant}.jsonl"


def participants(folder: Path) -> list[str]:
    """List the participants who have started."""
    return sorted(path.stem.removeprefix("answers-") for path in folder.glob("answers-*.jsonl"))


def read_answers(path: Path, schedule: Sequence[Pair]) -> list[Answer]:
    """Read the answers that count, in the order of the schedule.

    An incomplete last line was never confirmed to the participant and is ignored.

    Raises:
        ColorFluxError: for any other line that does not fit this schedule.
    """
    content = path.read_bytes() if path.exists() else b""
    answers: list[Answer] = []
    for number, line in enumerate(complete_lines(content).splitlines(), start=1):
        try:
            fields = json.loads(line)
            index, choice = fields["pair"], fields["choice"]
            pair = Pair(*(fields[key] for key in Pair._fields))
            if choice not in CHOICES or not 0 <= index <= len(answers) or schedule[index] != pair:
                raise ValueError(f"pair {index} {choice}")
        except (IndexError, KeyError, TypeError, ValueError) as error:
            raise ColorFluxError(
                f"{path}, line {number}, does not match this study: repair or remove the file"
            ) from error
        if not counts(index, choice, len(answers)):
            continue
        if choice == UNDO:
            answers.pop()
        else:
            answers.append(Answer(pair, choice))
    return answers


def record(path: Path, schedule: Sequence[Pair], index: int, choice: str) -> int:
    """Append an answer to pair ``index`` of the schedule, or its undo, if it counts now.

    Returns:
        The number of answered pairs afterwards.

    Raises:
        ColorFluxError: if the file is damaged or cannot be written.
    """
    answered = len(read_answers(path, schedule))
    if index >= len(schedule) or not counts(index, choice, answered):
        return answered
    now = datetime.now(timezone.utc).isoformat(timespec="seconds")
    line = {"pair": index, "choice": choice, **schedule[index]._asdict(), "time": now}
    try:
        with path.open("a+b") as file:
            file.seek(0)
            file.truncate(len(complete_lines(file.read())))
            file.write(json.dumps(line, ensure_ascii=False).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise ColorFluxError(
            f"cannot write {path} ({error.strerror}): check the folder and the free disk space"
        ) from error
    return answered - 1 if choice == UNDO else answered + 1


def counts(index: int, choice: str, answered: int) -> bool:
    """Whether it answers the next pair or undoes the last answer."""
    return 0 <= index == (answered - 1 if choice == UNDO else answered)


def complete_lines(content: bytes) -> bytes:
    """Drop an incomplete last line."""
    return content[: content.rfind(b"\n") + 1]
