"""A judge: its prompt and how its replies are parsed. The backend runs the model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from .parsing import Reading
from .template import Template


@dataclass(frozen=True)
class Judge:
    """A judge, independent of the model that runs it."""

    name: str

    metrics: tuple[str, ...]
    """Names of the metrics it scores, abbreviated as in the paper's tables."""

    template: Template

    read: Callable[[str], Reading | None]
    """Parses a reply into all metrics; None if it cannot be parsed."""

    reminder: str
    """Sent to the judge after a reply that cannot be parsed."""
