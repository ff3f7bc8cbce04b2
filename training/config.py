"""Typed configs: a dataclass per stage, filled from its defaults, a TOML recipe, then flags."""

from __future__ import annotations

import argparse
import logging
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NoReturn, TypeVar

from transformers import HfArgumentParser

from colorflux_core.errors import ColorFluxError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

Config = TypeVar("Config")


def setting(default: Any, help: str) -> Any:
    """A config field with its ``--help`` line."""
    return field(default=default, metadata={"help": help})


@dataclass
class LoopConfig:
    """What every stage's training loop needs to know."""

    output: Path = setting(Path("runs/stage"), "folder for checkpoint, samples and metrics")
    artifact: Path | None = setting(None, "folder for what is trained, where it is not --output")
    photos: Path = setting(Path("photos"), "folder that the manifest's file names start from")
    manifest: Path = setting(Path("photos.csv"), "CSV with the columns file and split")
    canvas: int = setting(1024, "side in pixels of the square that photos are squashed to")
    views: int = setting(1, "views kept of each photo: the whole of it, then random parts")
    steps: int = setting(0, "optimizer steps; 0 takes --epochs")
    epochs: float = setting(1.0, "passes over the views, where --steps is 0")
    batch_size: int = setting(64, "rows for one optimizer step")
    micro_batch: int = setting(0, "rows for one forward; 0 takes the whole batch at once")
    learning_rate: float = setting(1e-5, "AdamW's peak learning rate")
    schedule: Literal["constant", "constant_with_warmup", "cosine", "linear"] = setting(
        "constant", "learning rate after the warm-up"
    )
    warmup_steps: int = setting(0, "steps to the peak learning rate")
    weight_decay: float = setting(0.01, "AdamW's weight decay")
    max_grad_norm: float = setting(1.0, "gradients are clipped to this norm")
    ema_decay: float = setting(0.0, "weights are averaged with this decay; 0 keeps the last ones")
    precision: Literal["no", "bf16", "fp16"] = setting("no", "autocast type of the forward pass")
    seed: int = setting(0, "seeds the views, the order and every draw")
    checkpoint_every: int = setting(500, "steps between checkpoints")
    sample_every: int = setting(0, "steps between sample sheets; 0 draws one at the end")
    resume: bool = setting(False, "go on from the checkpoint in --output")


class Help(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """The trainer's docstring as it is written, and every setting with its default."""


class Parser(HfArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ColorFluxError(f"{message} (--help explains)")


def parse(config_class: type[Config], argv: list[str] | None = None, prog: str = "") -> Config:
    """The config that ``--recipe FILE.toml`` and the flags in ``argv`` describe; flags win.

    Raises ColorFluxError for an unknown setting, a wrong type or a value outside a choice, and for
    a recipe that is missing or is not TOML.
    """
    argv = sys.argv[1:] if argv is None else argv
    parser = Parser(
        config_class,
        prog=f"python -m {prog}",
        usage="%(prog)s [--recipe FILE.toml] [--SETTING VALUE]...",
        description=sys.modules[config_class.__module__].__doc__,
        formatter_class=Help,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--recipe", type=Path, metavar="FILE.toml", help="any of these settings, as a file"
    )
    recipe = parser.parse_args(argv).recipe
    try:
        settings = parser.parse_args(recipe_flags(recipe))
    except ColorFluxError as error:
        raise ColorFluxError(f"--recipe {recipe}: {error}") from error
    parser.parse_args(argv, settings)
    del settings.recipe
    return config_class(**vars(settings))


def recipe_flags(recipe: Path | None) -> list[str]:
    """A recipe as flags. Raises ColorFluxError for a file that cannot be read or is not TOML."""
    if recipe is None:
        return []
    try:
        settings = tomllib.loads(recipe.read_text(encoding="utf-8"))
    except OSError as error:
        raise ColorFluxError(f"cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ColorFluxError(f"is not TOML: {error}") from error
    return [f"--{key}={value}" for key, value in settings.items()]


def run(main: Callable[[list[str]], None]) -> None:
    """A trainer's command line: errors that users can mend, and being stopped, end in one line."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        main(sys.argv[1:])
    except ColorFluxError as error:
        sys.exit(f"error: {' '.join(str(error).split())}")
    except KeyboardInterrupt:
        sys.exit("stopped; --resume goes on from the last checkpoint")
