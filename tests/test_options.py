"""Settings as dataclass fields: ranges, and what is inherited."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from colorflux_core.errors import ColorFluxError
from colorflux_core.model.settings import Settings
from colorflux_core.options import Options, Range, inherit, number, setting, settings

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Frame(Options):
    width: int = setting(64, "width of the frame", low=16, multiple_of=16)
    strength: float = setting(1.0, "strength of the frame")
    mode: int | None = setting(None, "index of the mode", low=0)
    name: str = setting("plain", "name of the frame")


@dataclass(frozen=True)
class WideFrame(Frame):
    width: int = inherit(Frame, "width", 256)
    name: str = inherit(Frame, "name", help="name of the wide frame")


@pytest.mark.parametrize(
    ("allowed", "text", "inside", "outside"),
    [
        (Range(), "", [-1e9, 0, 1e9], [float("nan")]),
        (Range(0), "at least 0", [0, 5], [-0.1, float("nan")]),
        (Range(high=1.5), "at most 1.5", [-3, 1.5], [2]),
        (Range(1, 1000), "from 1 to 1000", [1, 1000], [0, 1001]),
        (Range(256, multiple_of=64), "a multiple of 64, at least 256", [256, 320], [192, 300]),
    ],
)
def test_ranges(allowed: Range, text: str, inside: list[float], outside: list[float]) -> None:
    assert str(allowed) == text
    assert all(value in allowed for value in inside)
    assert not any(value in allowed for value in outside)


def test_numbers_are_written_as_people_do() -> None:
    shown = [number(value) for value in (3.5, 1e-5, 1.0, 512, 2**64 - 1)]
    assert shown == ["3.5", "1e-05", "1", "512", "2**64 - 1"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"width": 40}, "width is 40: it must be a multiple of 16, at least 16."),
        ({"strength": float("nan")}, "strength is nan: it must be a number."),
        ({"mode": -1}, "mode is -1: it must be at least 0."),
    ],
)
def test_a_value_out_of_its_range_is_refused_by_name(
    changes: dict[str, float], message: str
) -> None:
    with pytest.raises(ColorFluxError) as refusal:
        Frame(**changes)  # type: ignore[arg-type]
    assert str(refusal.value) == message


def test_an_inherited_setting_differs_only_in_what_is_named() -> None:
    assert WideFrame() == WideFrame(256, 1.0, None, "plain")
    ours, theirs = settings(WideFrame), settings(Frame)
    assert ours["width"].metadata == theirs["width"].metadata
    assert ours["name"].metadata == {**theirs["name"].metadata, "help": "name of the wide frame"}


def test_help_texts_are_phrases() -> None:
    """Flags show them as they are, tooltips as sentences."""
    for name, option in settings(Settings).items():
        text = option.metadata["help"]
        assert text and not text.endswith(".") and text[0].islower(), name


def test_describing_settings_imports_nothing_heavy() -> None:
    script = (
        "import sys, colorflux_core.cli.flags, colorflux_core.model.settings;"
        "print({'numpy', 'torch', 'transformers'} & {*sys.modules})"
    )
    run = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert run.stdout.strip() == "set()"
