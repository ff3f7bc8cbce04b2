"""Typed configs: a dataclass per stage, filled from its defaults, TOML recipes, then flags."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

import torch

from colorflux_core.cli.flags import Parser, add_settings, given
from colorflux_core.errors import ColorFluxError
from colorflux_core.options import Options, inherit, setting, settings
from colorflux_core.photos.canvas import Canvas

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

# The headings of --help, in their order.
DATA = "data"
MODEL = "model"
LOSS = "loss"
OPTIMIZATION = "optimization"
MEMORY = "memory and speed"
OUTPUT = "checkpoints and logging"
PLAN = "plan"
HEADINGS = (DATA, MODEL, LOSS, OPTIMIZATION, MEMORY, OUTPUT, PLAN)

EXIT_STATUS = """\
exit status:
  0    done
  2    failed: an invalid argument, an unusable file or too little memory; the last line says why
  130  interrupted; {interrupted}
"""
REPEAT = EXIT_STATUS.format(interrupted="run the same command again to continue")
RESUME = EXIT_STATUS.format(
    interrupted="the same command with --resume continues from the last checkpoint"
)

DEFAULTS = "defaults"
"""The table of a recipe that every command reads before its own."""

MISSPELLED = 0.8
"""How similar, from 0 to 1, a recipe's default must be to a setting to count as misspelled."""

AnyConfig = TypeVar("AnyConfig", bound=Options)


@dataclass
class LoopConfig(Options):
    """The settings that every stage's training loop needs."""

    manifest: Path = setting(
        Path("photos.csv"),
        "CSV file with the columns file and split, as written by training.prepare",
        metavar="FILE",
        group=DATA,
    )
    photos: Path | None = setting(
        None,
        "folder that the manifest's file names are relative to, if not the manifest's own",
        metavar="FOLDER",
        group=DATA,
        may_change=True,
    )
    cache: Path = setting(
        Path("runs/cache"),
        "folder for encoded photos, which all runs share",
        metavar="FOLDER",
        group=DATA,
        may_change=True,
    )
    canvas: int = inherit(
        Canvas, "pixels", help="side in pixels of the square that photos are resized to", group=DATA
    )
    views: int = setting(
        1, "crops per photo; the first is the full photo, the others are random", low=1, group=DATA
    )
    view_seed: int = setting(
        0, "random seed of the crops; runs with the same one share their cache", group=DATA
    )
    workers: int = setting(
        2,
        "processes per device that read photos; 0 reads in the main process",
        low=0,
        group=DATA,
        may_change=True,
    )

    steps: int = setting(
        0, "optimizer steps; 0 uses --epochs", low=0, group=OPTIMIZATION, may_change=True
    )
    epochs: float = setting(
        1.0, "passes over the crops, if --steps is 0", low=0, group=OPTIMIZATION, may_change=True
    )
    batch_size: int = setting(
        64, "rows per optimizer step, over all devices", low=1, group=OPTIMIZATION
    )
    optimizer: Literal["adamw", "adamw8bit"] = setting(
        "adamw", "adamw8bit keeps its states in 8 bits and needs bitsandbytes", group=OPTIMIZATION
    )
    learning_rate: float = setting(1e-5, "peak learning rate", low=0, group=OPTIMIZATION)
    schedule: Literal["constant", "constant_with_warmup", "cosine", "linear"] = setting(
        "constant", "learning rate schedule", group=OPTIMIZATION
    )
    warmup_steps: int = setting(
        0, "steps to reach the peak learning rate", low=0, group=OPTIMIZATION
    )
    weight_decay: float = setting(0.01, "weight decay of AdamW", low=0, group=OPTIMIZATION)
    max_grad_norm: float = setting(
        1.0, "gradients are clipped to this norm; 0 disables clipping", low=0, group=OPTIMIZATION
    )
    max_loss_ratio: float = setting(
        100.0,
        "stop when the loss exceeds this multiple of its recent mean; 0 never stops",
        low=0,
        group=OPTIMIZATION,
        may_change=True,
    )
    ema_decay: float = setting(
        0.0,
        "decay of the weights' exponential moving average; 0 saves the last weights instead",
        low=0,
        high=1,
        group=OPTIMIZATION,
    )
    seed: int = setting(0, "random seed of the row order, noise and timesteps", group=OPTIMIZATION)

    micro_batch: int = setting(
        0,
        "per-device micro-batch; 0 disables gradient accumulation",
        low=0,
        group=MEMORY,
        may_change=True,
    )
    precision: Literal["no", "bf16", "fp16"] = setting(
        "bf16", "autocast type of the forward pass; trained weights stay in float32", group=MEMORY
    )
    gradient_checkpointing: bool = setting(
        False, "recompute activations instead of storing them", group=MEMORY, may_change=True
    )
    compile_blocks: bool = setting(
        False, "compile the transformer blocks (torch.compile)", group=MEMORY, may_change=True
    )
    shard: bool = setting(
        False,
        "shard the trained weights over the devices (FSDP2)",
        group=MEMORY,
        may_change=True,
    )

    output: Path = setting(
        Path("runs/stage"),
        "folder for checkpoints, samples and metrics",
        metavar="FOLDER",
        group=OUTPUT,
        may_change=True,
    )
    artifact: Path | None = setting(
        None,
        "folder for the trained model, if not --output",
        metavar="FOLDER",
        group=OUTPUT,
        may_change=True,
    )
    checkpoint_every: int = setting(
        500, "steps between checkpoints", low=1, group=OUTPUT, may_change=True
    )
    keep_checkpoints: int = setting(
        2, "number of checkpoints to keep", low=1, group=OUTPUT, may_change=True
    )
    sample_every: int = setting(
        0,
        "steps between sample sheets; 0 draws one at the end",
        low=0,
        group=OUTPUT,
        may_change=True,
    )
    tracker: Literal["tensorboard", "wandb", "none"] = setting(
        "tensorboard", "where to log metrics besides metrics.jsonl", group=OUTPUT, may_change=True
    )
    resume: bool = setting(
        False,
        "continue from the newest checkpoint in --output, if there is one",
        group=OUTPUT,
        may_change=True,
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
                f"--batch-size {self.batch_size} must be a multiple of --micro-batch"
                + (f" on each of {devices} devices" if devices > 1 else "")
            )
        return micro_batch

    def steps_for(self, rows: int) -> int:
        """``--steps``, or the steps of ``--epochs`` passes over the rows."""
        return self.steps or max(1, math.ceil(self.epochs * rows / self.batch_size))

    @property
    def photo_folder(self) -> Path:
        return self.manifest.parent if self.photos is None else self.photos


def parse(
    config_class: type[AnyConfig], argv: list[str] | None = None, prog: str = ""
) -> AnyConfig:
    """The config that recipes and flags describe; flags win, and later recipes over earlier ones.

    Raises ColorFluxError for an unknown setting, a wrong type or a value outside its range, and for
    a recipe that is missing or is not TOML.
    """
    command = prog.split()[-1].rpartition(".")[2] if prog else ""
    parser = Parser(
        prog.removeprefix("training."),
        "[--recipe FILE.toml[:TABLE]]... [--SETTING VALUE]...",
        sys.modules[config_class.__module__].__doc__ or "",
        RESUME if issubclass(config_class, LoopConfig) else REPEAT,
        package="training",
    )
    parser.add_argument(
        "--recipe",
        metavar="FILE.toml[:TABLE]",
        action="append",
        default=[],
        help="read settings from a file, whose table is by default the one named like the command"
        f" ({command}); repeatable, later files win",
    )
    for heading in HEADINGS:
        parser.add_argument_group(heading)
    add_settings(parser, config_class)
    flags = parser.parse_args(argv)
    values: dict[str, Any] = {}
    for place in flags.recipe:
        recipe = read_recipe(place, command)
        try:
            known = known_settings(recipe.defaults, config_class)
            words = recipe_flags(known | recipe.settings)
            values |= given(parser.parse_args(words), config_class)
        except ColorFluxError as error:
            raise ColorFluxError(f"--recipe {place}: {error}") from error
    return config_class(**values | given(flags, config_class))


class Recipe(NamedTuple):
    """A recipe's settings by name, as TOML has them; those of the table win."""

    defaults: dict[str, Any]
    settings: dict[str, Any]


def read_recipe(place: str, command: str) -> Recipe:
    """The table of ``FILE.toml:TABLE``, or of ``FILE.toml`` the one named like the command.

    A file without tables is a recipe of its own.

    Raises ColorFluxError for a file that cannot be read or is not TOML, and for a missing table,
    naming those that there are.
    """
    file, _, table = place.rpartition(":")
    if not file.endswith(".toml"):
        file, table = place, ""
    try:
        content = tomllib.loads(Path(file).read_text(encoding="utf-8"))
    except OSError as error:
        raise ColorFluxError(f"--recipe {file}: cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ColorFluxError(f"--recipe {file}: is not TOML: {error}") from error
    tables = {name: value for name, value in content.items() if isinstance(value, dict)}
    if not tables and not table:
        return Recipe({}, content)
    if tables and (stray := content.keys() - tables.keys()):
        raise ColorFluxError(
            f"--recipe {file}: {min(stray)} is in no table: move it to [{DEFAULTS}]"
        )
    defaults = tables.pop(DEFAULTS, {})
    wanted = table or command
    if wanted not in tables:
        has = ", ".join(tables) or "no table"
        raise ColorFluxError(
            f"--recipe {file}: has no table {wanted}: use --recipe {file}:TABLE (it has {has})"
        )
    return Recipe(defaults, tables[wanted])


def known_settings(defaults: dict[str, Any], config_class: type[Options]) -> dict[str, Any]:
    """The defaults that this command has; the others are for the file's other commands.

    Raises ColorFluxError for one that looks like a misspelled setting of this command.
    """
    own = settings(config_class).keys()
    known = {}
    for name, value in defaults.items():
        if name.replace("-", "_") in own:
            known[name] = value
        elif similar := get_close_matches(name, own, n=1, cutoff=MISSPELLED):
            raise ColorFluxError(f"unrecognized setting {name}: did you mean {similar[0]}?")
    return known


def recipe_flags(settings: Mapping[str, Any]) -> list[str]:
    return [f"--{name}={value}" for name, value in settings.items()]
