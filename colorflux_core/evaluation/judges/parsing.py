"""Parsing of judge replies. An ambiguous or missing number is never guessed."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

NUMBER = re.compile(r"[+-]?\d+(\.\d+)?")
ANSWER = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)


class Reading(NamedTuple):
    """A judge's scores by metric name, and its reasoning."""

    values: dict[str, float]
    rationale: str


def read_aspects(reply: str, metrics: Mapping[str, str], low: float, high: float) -> Reading | None:
    """Parse a JSON object with a number from ``low`` to ``high`` for every aspect.

    Surrounding prose and code fences are ignored, and numbers may be strings. The object may have
    a ``rationale``.

    Args:
        reply: The judge's reply.
        metrics: Maps the object's keys to metric names.
        low: The lowest valid number.
        high: The highest valid number.

    Returns:
        The scores, or None if there is no such object or several contradict each other.
    """
    thinking, text = split_thinking(reply)
    found = [each for each in json_objects(text) if metrics.keys() <= each.keys()]
    values = [
        {name: number(each[key], low, high) for key, name in metrics.items()} for each in found
    ]
    agreed = consensus(values)
    if agreed is None or None in agreed.values():
        return None
    reason = found[-1].get("rationale", thinking)
    return Reading(agreed, reason if isinstance(reason, str) else json.dumps(reason))


def read_rating(reply: str, metric: str, low: float, high: float) -> Reading | None:
    """Parse a number from ``low`` to ``high``, or a JSON object with the number under ``rating``.

    The number is the full reply or is inside ``<answer>`` tags. Text inside ``<think>`` tags is
    the rationale. Returns None if there is no such number or several contradict each other.
    """
    thinking, text = split_thinking(reply)
    ratings = [
        number(rating, low, high)
        for answer in ANSWER.findall(text) or [text]
        for rating in [each.get("rating") for each in json_objects(answer)] or [answer]
    ]
    rating = consensus(ratings)
    return None if rating is None else Reading({metric: rating}, thinking)


def split_thinking(reply: str) -> tuple[str, str]:
    """Split a reply into (thinking, answer); an unclosed ``<think>`` leaves the answer empty."""
    thinking, _, answer = reply.rpartition("</think>")
    answer, _, unfinished = answer.partition("<think>")
    return (thinking + unfinished).replace("<think>", "").strip(), answer


def json_objects(text: str) -> Iterator[dict[str, Any]]:
    """Yield the outermost JSON objects in a text, except those with duplicate keys."""
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


def unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Build a dictionary from pairs; raises ValueError for a duplicate key."""
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("duplicate key")
    return found


# Not strict, because rationales often contain raw line breaks.
DECODER = json.JSONDecoder(object_pairs_hook=unique_keys, strict=False)


def number(value: object, low: float, high: float) -> float | None:
    """Return ``value`` as a float if it is a number, or a string of one, in [low, high]."""
    if isinstance(value, str) and NUMBER.fullmatch(value.strip()):
        value = float(value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if low <= value <= high else None


def consensus(values: list[Any]) -> Any:
    """Return the common value; None if the values differ or the list is empty."""
    return values[0] if values and all(value == values[0] for value in values) else None
