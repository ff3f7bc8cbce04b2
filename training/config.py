"""Typed configs: a dataclass per stage, filled from its defaults, then a TOML recipe, then flags."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

import tomllib
from transformers import HfArgumentParser

from colorflux_core.errors import ColorFluxError

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


def parse(config_class: type[Config], argv: list[str] | None = None, prog: str = "") -> Config:
    """The config that ``--recipe FILE.toml`` and the flags in ``argv`` describe; flags win.

    An unknown key, a wrong type or a value outside a choice ends the program with one line that
    names it (argparse), whether it stands in the recipe or on the command line.
    """
    argv = sys.argv[1:] if argv is None else argv
    parser = HfArgumentParser(config_class, prog=f"python -m {prog}", allow_abbrev=False)
    parser.add_argument("--recipe", type=Path, help="TOML file with any of these settings")
    recipe = parser.parse_known_args(argv)[0].recipe if "--help" not in argv else None
    settings = vars(parser.parse_args([*recipe_flags(recipe), *argv]))
    settings.pop("recipe")
    return config_class(**settings)


def recipe_flags(recipe: Path | None) -> list[str]:
    """A recipe as flags. Raises ColorFluxError for a file that is missing or is not TOML."""
    if recipe is None:
        return []
    try:
        settings = tomllib.loads(recipe.read_text(encoding="utf-8"))
    except OSError as error:
        raise ColorFluxError(f"cannot read --recipe {recipe}: {error.strerror}") from error
    except tomllib.TOMLDecodeError as error:
        raise ColorFluxError(f"--recipe {recipe} is not TOML: {error}") from error
    return [f"--{key}={value}" for key, value in settings.items()]


def run(main: Callable[[list[str]], None]) -> None:
    """A trainer's command line: errors that users can mend end it in one line."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        main(sys.argv[1:])
    except ColorFluxError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("stopped; --resume goes on from the last checkpoint")
