"""A study's folder:

study.json                     the methods, images and settings; written once
images/ID.jpg                  the images shown, with names that reveal nothing
answers-PARTICIPANT.jsonl      one line per answer
results.md, .csv, .svg         the results
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ...errors import ColorFluxError
from ..rows import write_file
from .design import Pair, schedule

FILE = "study.json"
IMAGES = "images"
VERSION = 1


@dataclass(frozen=True)
class Shown:
    """An image of a benchmark set, with the ids of its input and results in ``images``."""

    set: str
    image: str
    input: str
    results: dict[str, str]
    """Ids by method name."""


@dataclass(frozen=True)
class Study:
    """What a study compares, and its settings."""

    methods: tuple[str, ...]
    reference: str | None
    """The method on one side of every pair; None compares all methods with each other."""

    shown: tuple[Shown, ...]
    token: str
    """Random secret; anyone who knows it can answer."""

    seed: int = 0
    pairs: int | None = None
    """Pairs per participant; None shows every pair once."""

    ties: bool = False

    def schedule(self, participant: str) -> list[Pair]:
        """The participant's pairs, in the order they are shown."""
        methods_of = {(shown.set, shown.image): [*shown.results] for shown in self.shown}
        return schedule(methods_of, self.reference, (self.seed, participant), self.pairs)


def picture_path(folder: Path, id: str) -> Path:
    """The file of an image that is shown."""
    return folder / IMAGES / f"{id}.jpg"


def write_study(folder: Path, study: Study) -> None:
    """Write study.json; raises ColorFluxError if that fails."""
    write_file(folder / FILE, json.dumps({"version": VERSION, **asdict(study)}, indent=1).encode())


def read_study(folder: Path) -> Study:
    """Read a study; raises ColorFluxError if there is none, or it is damaged or incomplete."""
    path = folder / FILE
    try:
        fields: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if fields.pop("version") != VERSION:
            raise ColorFluxError(f"{path} was made by another version: create the study again")
        fields["methods"] = tuple(fields["methods"])
        fields["shown"] = tuple(Shown(**shown) for shown in fields["shown"])
        study = Study(**fields)
    except OSError as error:
        raise ColorFluxError(
            f"cannot read {path} ({error.strerror}): create a study with"
            " python -m colorflux_core.evaluation study new"
        ) from error
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ColorFluxError(f"{path} is damaged: create the study again") from error
    for id in picture_ids(study):
        if not picture_path(folder, id).is_file():
            raise ColorFluxError(f"{picture_path(folder, id)} is missing: create the study again")
    return study


def picture_ids(study: Study) -> frozenset[str]:
    """The ids of all images that are shown."""
    return frozenset(id for shown in study.shown for id in (shown.input, *shown.results.values()))
