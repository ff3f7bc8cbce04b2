"""What a judge's reply says. A number that is not plainly there is not guessed."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

NUMBER = re.compile(r"[+-]?\d+(\.\d+)?")
ANSWER = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)


class Reading(NamedTuple):
    """The values of a judge's metrics, by name, and why the judge gave them."""

    values: dict[str, float]
    rationale: str


def read_aspects(reply: str, metrics: Mapping[str, str], low: float, high: float) -> Reading | None:
    """A JSON object that has a number from ``low`` to ``high`` for every aspect.

    Prose and fences around it do not matter; a number may be a string. There may be a
    ``rationale``.

    Args:
        reply: The judge's.
        metrics: By aspect, as the object calls it, the metric's name.
        low: The least number.
        high: The greatest number.

    Returns:
        None when there is no such object, or there are several that differ.
    """
    thought, said = split_thought(reply)
    found = [each for each in json_objects(said) if metrics.keys() <= each.keys()]
    values = [
        {name: number(each[key], low, high) for key, name in metrics.items()} for each in found
    ]
    agreed = sole(values)
    if agreed is None or None in agreed.values():
        return None
    reason = found[-1].get("rationale", thought)
    return Reading(agreed, reason if isinstance(reason, str) else json.dumps(reason))


def read_rating(reply: str, metric: str, low: float, high: float) -> Reading | None:
    """One number from ``low`` to ``high``, or a JSON object that has it as ``rating``.

    It is the whole reply, or between ``<answer>`` tags; thoughts between ``<think>`` tags are the
    rationale. None when there is no such number, or there are several that differ.
    """
    thought, said = split_thought(reply)
    ratings = [
        number(rating, low, high)
        for answer in ANSWER.findall(said) or [said]
        for rating in [each.get("rating") for each in json_objects(answer)] or [answer]
    ]
    rating = sole(ratings)
    return None if rating is None else Reading({metric: rating}, thought)


def split_thought(reply: str) -> tuple[str, str]:
    """What was thought and what was said; a thought that does not end leaves nothing said."""
    thought, _, said = reply.rpartition("</think>")
    said, _, unfinished = said.partition("<think>")
    return (thought + unfinished).replace("<think>", "").strip(), said


def json_objects(text: str) -> Iterator[dict[str, Any]]:
    """The outermost JSON objects in a text; one that names a key twice is none."""
    start = text.find("{")
    while start >= 0:
        try:
            found, end = DECODER.raw_decode(text, start)
            yield found
        except ValueError:
            end = start + 1
        except RecursionError:
            return
        start = text.find("{", end)


def unambiguous(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a key is there twice")
    return found


# Not strict: line breaks in a rationale are common.
DECODER = json.JSONDecoder(object_pairs_hook=unambiguous, strict=False)


def number(value: object, low: float, high: float) -> float | None:
    if isinstance(value, str) and NUMBER.fullmatch(value.strip()):
        value = float(value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if low <= value <= high else None


def sole(values: list[Any]) -> Any:
    """What all of them are; None when they differ or there are none."""
    return values[0] if values and all(value == values[0] for value in values) else None
