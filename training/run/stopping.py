"""Ctrl-C and SIGTERM end the step that is running, not the run's state."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class StopRequest:
    asked = False


@contextmanager
def asked_to_stop() -> Iterator[StopRequest]:
    """Inside, the first signal is only noted; a second one raises KeyboardInterrupt at once."""
    request = StopRequest()

    def note(number: int, frame: FrameType | None) -> None:
        if request.asked:
            raise KeyboardInterrupt
        request.asked = True

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
