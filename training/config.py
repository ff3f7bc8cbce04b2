"""Typed configs: a dataclass per stage, filled from its defaults, TOML recipes, then flags."""

from __future__ import annotations

import argparse
import math
import sys
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, NoReturn, TypeVar

import torch
from transformers import HfArgumentParser

from colorflux_core.errors import ColorFluxError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

AnyConfig = TypeVar("AnyConfig", bound="Config")


def setting(
    default: Any,
    help: str,
    *,
    low: float = -math.inf,
    high: float = math.inf,
    may_change: bool = False,
) -> Any:
    """A config field with its ``--help`` line, the range of its values [low, high], and whether a
    run may be resumed with another value."""
    metadata = {"help": help, "range": (low, high), "may_change": may_change}
    return field(default=default, metadata=metadata)


@dataclass
class Config:
    """Settings, each in its range. Raises ColorFluxError for a value that is not."""

    def __post_init__(self) -> None:
        for setting in fields(self):
            low, high = setting.metadata["range"]
            value = getattr(self, setting.name)
            if not isinstance(value, int | float) or low <= value <= high:
                continue
            bounds = f"from {low:g} to {high:g}" if high < math.inf else f"at least {low:g}"
            raise ColorFluxError(f"--{setting.name} is {value}: it must be {bounds}")


@dataclass
class LoopConfig(Config):
    """What every stage's training loop needs to know."""

    output: Path = setting(
        Path("runs/stage"), "folder for checkpoints, samples and metrics", may_change=True
    )
    artifact: Path | None = setting(
        None, "folder for what is trained, where it is not --output", may_change=True
    )
    manifest: Path = setting(
        Path("photos.csv"), "CSV with the columns file and split, such as training.prepare makes"
    )
    photos: Path | None = setting(
        None,
        "folder that the manifest's file names start from, where it is not the manifest's own",
        may_change=True,
    )
    cache: Path = setting(Path("runs/cache"), "folder for what is encoded once", may_change=True)
    workers: int = setting(
        2,
        "processes that read photos, on each device; 0 reads in the trainer",
        low=0,
        may_change=True,
    )
    canvas: int = setting(1024, "side in pixels of the square that photos are squashed to", low=16)
    views: int = setting(1, "views kept of each photo: the whole of it, then random parts", low=1)
    view_seed: int = setting(0, "seeds the random parts; runs that share it share their cache")
    steps: int = setting(0, "optimizer steps; 0 takes --epochs", low=0, may_change=True)
    epochs: float = setting(
        1.0, "passes over the views, where --steps is 0", low=0, may_change=True
    )
    batch_size: int = setting(64, "rows for one optimizer step, on all devices together", low=1)
    micro_batch: int = setting(
        0,
        "rows for one forward on one device; 0 takes a device's share at once",
        low=0,
        may_change=True,
    )
    optimizer: Literal["adamw", "adamw8bit"] = setting(
        "adamw", "adamw8bit keeps its states in 8 bits (bitsandbytes)"
    )
    learning_rate: float = setting(1e-5, "the optimizer's peak learning rate", low=0)
    schedule: Literal["constant", "constant_with_warmup", "cosine", "linear"] = setting(
        "constant", "learning rate after the warm-up"
    )
    warmup_steps: int = setting(0, "steps to the peak learning rate", low=0)
    weight_decay: float = setting(0.01, "the optimizer's weight decay", low=0)
    max_grad_norm: float = setting(1.0, "gradients are clipped to this norm", low=0)
    max_loss_ratio: float = setting(
        100.0,
        "stop where the loss is this many times its recent mean; 0 never",
        low=0,
        may_change=True,
    )
    ema_decay: float = setting(
        0.0, "weights are averaged with this decay; 0 keeps the last ones", low=0, high=1
    )
    precision: Literal["no", "bf16", "fp16"] = setting(
        "bf16", "autocast type of the forward pass; what is trained stays in float32"
    )
    gradient_checkpointing: bool = setting(
        False, "compute activations a second time instead of keeping them", may_change=True
    )
    compile_blocks: bool = setting(False, "compile the transformer blocks first", may_change=True)
    shard: bool = setting(
        False, "FSDP2: each device holds its share of what is trained", may_change=True
    )
    seed: int = setting(0, "seeds the order and every draw")
    checkpoint_every: int = setting(500, "steps between checkpoints", low=1, may_change=True)
    keep_checkpoints: int = setting(2, "checkpoints that are kept", low=1, may_change=True)
    sample_every: int = setting(
        0, "steps between sample sheets; 0 draws one at the end", low=0, may_change=True
    )
    tracker: Literal["tensorboard", "wandb", "none"] = setting(
        "tensorboard", "where metrics go beside metrics.jsonl", may_change=True
    )
    resume: bool = setting(
        False, "go on from the newest checkpoint in --output, if any", may_change=True
    )

    @property
    def autocast(self) -> torch.dtype | None:
        """The type of ``--precision``."""
        return {"no": None, "bf16": torch.bfloat16, "fp16": torch.float16}[self.precision]

    def micro_batch_size(self, devices: int) -> int:
        """Rows of one forward pass on each of ``devices``.

        Raises ColorFluxError when the batch cannot be divided that way.
        """
        micro_batch = self.micro_batch or self.batch_size // devices
        if not micro_batch or self.batch_size % (micro_batch * devices):
            raise ColorFluxError(
                f"--batch_size {self.batch_size} must be a multiple of --micro_batch"
                + (f" on each of {devices} devices" if devices > 1 else "")
            )
        return micro_batch

    def steps_for(self, rows: int) -> int:
        """``--steps``, or as many as take ``--epochs`` passes over the rows."""
        return self.steps or max(1, math.ceil(self.epochs * rows / self.batch_size))

    @property
    def photo_folder(self) -> Path:
        return self.manifest.parent if self.photos is None else self.photos


class Help(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """The trainer's docstring as it is written, and every setting with its default."""


class Parser(HfArgumentParser):
    def add_argument(self, *names: Any, **options: Any) -> argparse.Action:
        for ours in ("range", "may_change"):
            options.pop(ours, None)
        return super().add_argument(*names, **options)

    def error(self, message: str) -> NoReturn:
        raise ColorFluxError(f"{message} (--help explains)")


def parse(
    config_class: type[AnyConfig], argv: list[str] | None = None, prog: str = ""
) -> AnyConfig:
    """The config that ``--recipe FILE.toml`` and the flags in ``argv`` describe; flags win, and
    each recipe over the ones before it.

    Raises ColorFluxError for an unknown setting, a wrong type or a value outside its range, and for
    a recipe that is missing or is not TOML.
    """
    argv = sys.argv[1:] if argv is None else argv
    parser = Parser(
        config_class,
        prog=f"python -m {prog}",
        usage="%(prog)s [--recipe FILE.toml]... [--SETTING VALUE]...",
        description=sys.modules[config_class.__module__].__doc__,
        formatter_class=Help,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--recipe",
        type=Path,
        metavar="FILE.toml",
        action="append",
        default=[],
        help="any of these settings, as a file; given twice, the later file wins",
    )
    recipes = parser.parse_args(argv).recipe
    settings = argparse.Namespace()
    for recipe in recipes:
        flags = recipe_flags(recipe)
        try:
            parser.parse_args(flags, settings)
        except ColorFluxError as error:
            raise ColorFluxError(f"--recipe {recipe}: {error}") from error
    parser.parse_args(argv, settings)
    del settings.recipe
    return config_class(**vars(settings))


def recipe_flags(recipe: Path) -> list[str]:
    """A recipe as flags. Raises ColorFluxError for a file that cannot be read or is not TOML."""
    try:
        settings = tomllib.loads(recipe.read_text(encoding="utf-8"))
    except OSError as error:
        raise ColorFluxError(f"--recipe {recipe}: cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ColorFluxError(f"--recipe {recipe}: is not TOML: {error}") from error
    return [f"--{key}={value}" for key, value in settings.items()]
