"""A judge: what it is asked, and how its replies are read. Who replies is the backend's part."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from .parsing import Reading
from .template import Template


@dataclass(frozen=True)
class Judge:
    name: str

    metrics: tuple[str, ...]
    """What it scores, as the paper's tables abbreviate it."""

    template: Template

    read: Callable[[str], Reading | None]
    """Of a reply, all metrics; None when it cannot be read."""

    reminder: str
    """What is said to a judge whose reply cannot be read."""
