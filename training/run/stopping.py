"""Ctrl-C and SIGTERM stop a run after the current step."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class StopRequest:
    """Whether SIGINT or SIGTERM was received."""

    received = False


@contextmanager
def defer_signals() -> Iterator[StopRequest]:
    """Context in which the first signal is only recorded; a second one raises KeyboardInterrupt."""
    request = StopRequest()

    def record(number: int, frame: FrameType | None) -> None:
        if request.received:
            raise KeyboardInterrupt
        request.received = True

    before = {number: signal.signal(number, record) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
