"""Flags from settings: spelling, values, help, and what is suggested for a mistake."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pytest

from colorflux_core import colorize, restore
from colorflux_core.cli.flags import Parser, add_settings, described, given
from colorflux_core.errors import ColorFluxError
from colorflux_core.evaluation.run_command import parse as parse_run
from colorflux_core.evaluation.sets_command import parse as parse_sets
from colorflux_core.evaluation.study.command import parse as parse_study
from colorflux_core.model.settings import Settings
from colorflux_core.options import Options, setting, settings
from colorflux_core.s3diff.convert import parse as parse_convert
from colorflux_core.s3diff.options import Restoration
from training import ablations, basic_color, bundle, prepare, pretrain, pro_dpo, structure


@dataclass(frozen=True)
class Frame(Options):
    batch_size: int = setting(4, "size of a batch", low=1, group="data")
    folder: Path | None = setting(None, "folder of the frame", metavar="FOLDER", group="data")
    gain: float = setting(0.5, "gain in %", low=0, high=1, group="picture")
    shape: Literal["round", "square"] = setting("round", "shape of the frame", group="picture")
    shard: bool = setting(False, "break the frame", group="picture")


def parsed(*words: str, photos: bool = False) -> dict[str, Any]:
    parser = Parser("frame", "[options]", "Frames.")
    if photos:
        parser.add_argument("photos", nargs="*")
    add_settings(parser, Frame)
    args = parser.parse_args(words)
    return given(args, Frame) | ({"photos": args.photos} if photos else {})


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("", {}),
        ("--batch-size 8", {"batch_size": 8}),
        ("--batch_size 8", {"batch_size": 8}),
        ("--batch_size=8 --gain .25", {"batch_size": 8, "gain": 0.25}),
        ("--folder a_b --shape square", {"folder": Path("a_b"), "shape": "square"}),
        ("--shard", {"shard": True}),
        ("--no-shard", {"shard": False}),
        ("--no_shard", {"shard": False}),
        ("--shard=True", {"shard": True}),
        ("--shard=false", {"shard": False}),
        ("--shard no --gain 1", {"shard": False, "gain": 1.0}),
    ],
)
def test_what_was_given_is_read_and_nothing_else(words: str, expected: dict[str, Any]) -> None:
    assert parsed(*words.split()) == expected


def test_a_photo_after_a_switch_is_a_photo() -> None:
    assert parsed("--shard", "1", photos=True) == {"shard": True, "photos": ["1"]}
    assert parsed("--shard", "--", "--gain", photos=True)["photos"] == ["--gain"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--batch_szie 3", "unrecognized argument --batch_szie: did you mean --batch-size?"),
        ("--shrd", "unrecognized argument --shrd: did you mean --shard?"),
        ("--xyzzy", "unrecognized argument --xyzzy (--help explains)"),
        ("--batch-size many", "--batch-size: 'many' is not a whole number (--help explains)"),
        ("--gain much", "--gain: 'much' is not a number (--help explains)"),
        (
            "--batch-size 0",
            "--batch-size: 0 is out of range: it must be at least 1 (--help explains)",
        ),
        ("--gain nan", "--gain: nan is out of range: it must be from 0 to 1 (--help explains)"),
    ],
)
def test_a_mistake_is_named_with_what_mends_it(words: str, message: str) -> None:
    with pytest.raises(ColorFluxError) as refusal:
        parsed(*words.split())
    assert str(refusal.value) == message


def test_help_has_groups_defaults_and_ranges(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parsed("--help")
    shown = capsys.readouterr().out
    assert shown.index("\ndata:") < shown.index("--folder FOLDER") < shown.index("\npicture:")
    lines = " ".join(shown.split())
    for line in (
        "--batch-size N size of a batch (default: 4; at least 1)",
        "--folder FOLDER folder of the frame --",
        "--gain X gain in % (default: 0.5; from 0 to 1)",
        "--shape {round,square} shape of the frame (default: round)",
        "--shard, --no-shard break the frame (default: off)",
    ):
        assert line in f"{lines} --".replace("picture:", "--")


# Every command

Parse = Callable[[list[str]], object]
COMMANDS: dict[str, tuple[Parse, str, str]] = {
    "colorize": (colorize.main, "--stesp", "--steps"),
    "restore": (restore.main, "--color_fxi", "--color-fix"),
    "s3diff.convert": (parse_convert, "--ouptut", "--output"),
    "evaluation sets": (parse_sets, "--max_sdie", "--max-side"),
    "evaluation run": (parse_run, "--metod", "--method"),
    "evaluation study": (lambda argv: parse_study(["new", *argv]), "--round-robn", "--round-robin"),
    "prepare": (prepare.main, "--min_sdie", "--min-side"),
    "pretrain vision": (
        lambda argv: pretrain.main(["vision", *argv]),
        "--imagesize",
        "--image-size",
    ),
    "pretrain vae": (lambda argv: pretrain.main(["vae", *argv]), "--corp", "--crop"),
    "pretrain flux": (lambda argv: pretrain.main(["flux", *argv]), "--haeds", "--heads"),
    "structure": (structure.main, "--stesp", "--steps"),
    "basic_color": (basic_color.main, "--alhpa", "--alpha"),
    "pro_dpo": (pro_dpo.main, "--fading_lo", "--fading-low"),
    "bundle": (bundle.main, "--detial", "--detail"),
    "ablations": (ablations.main, "--seed", "--seeds"),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_suggests_the_flag_that_was_meant(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    parse, typed, meant = COMMANDS[name]
    message = f"unrecognized argument {typed}: did you mean {meant}?"
    try:
        assert parse([typed, "1"]) == 2
    except ColorFluxError as error:
        assert str(error) == message
    else:
        assert capsys.readouterr().err == f"{name}: error: {message}\n"


@pytest.mark.parametrize("name", COMMANDS)
def test_every_help_teaches(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Its command in full, a sentence, groups; and an example of all but the simplest."""
    with pytest.raises(SystemExit) as end:
        COMMANDS[name][0](["--help"])
    shown = capsys.readouterr().out
    assert not end.value.code
    usage, description = shown.split("\n\n")[:2]
    assert usage.startswith("usage: python -m ")
    assert description.endswith((".", ":"))
    assert sum(line.endswith(":") and line[0] != " " for line in shown.splitlines() if line) >= 2
    if name not in ("s3diff.convert",):
        assert shown.count("python -m ") >= 2


@pytest.mark.parametrize(
    ("parser", "options", "named"),
    [
        (colorize.parser, Settings, [*settings(Settings)]),
        (restore.parser, Restoration, [*settings(Restoration)]),
    ],
)
def test_help_texts_are_the_settings_own(
    parser: Callable[[], Parser], options: type[Options], named: list[str]
) -> None:
    shown = " ".join(parser().format_help().split())
    for name in named:
        option = settings(options)[name]
        assert option.metadata["help"] in shown, name
        assert str(option.metadata["range"]) in shown, name
        if options is Restoration and name != "gray":
            assert described(option) in shown, name
