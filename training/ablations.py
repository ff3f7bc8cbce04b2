"""Run the paper's ablations on nano.

  python -m training.ablations --photos PHOTOS

Every arm of Tables 2, 3 and 4 and of Figure 5 is trained from the same base, with the same number
of steps as the arms it is compared with, once per seed. It then colorizes photos that are not in
the training set, and the tables are written. After an interruption, the same command continues:
finished runs are not repeated.
"""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cache, partial
from pathlib import Path

import torch

from colorflux_core.bundles.bundle import Bundle, assemble
from colorflux_core.bundles.components import load_model
from colorflux_core.digest import digest
from colorflux_core.errors import ColorFluxError
from colorflux_core.evaluation.benchmark.build import Recipe, build_sets
from colorflux_core.evaluation.benchmark.colorized import colorize_sets
from colorflux_core.evaluation.benchmark.sets import BenchmarkSet, read_sets
from colorflux_core.evaluation.rows import write_file
from colorflux_core.model.settings import Settings
from colorflux_core.options import Options, inherit, setting
from colorflux_core.photos.canvas import Canvas

from . import basic_color, pro_dpo, structure
from .ablation.tables import ARMS, Arm, sets_for, write_tables
from .config import DATA, MODEL, LoopConfig, parse, read_recipe, recipe_flags
from .data.manifest import manifest_rows, read_manifest
from .launch import run_command

logger = logging.getLogger(__name__)

LORA = "pro_dpo.safetensors"
PROVENANCE = "made-by.txt"
"""A file in the folder of a finished run, with the hash of its recipe, data and parent runs."""


@dataclass
class AblationsConfig(Options):
    output: Path = setting(
        Path("runs/ablations"),
        "folder for runs, results and tables",
        metavar="FOLDER",
        group="output",
    )
    seeds: int = setting(3, "runs per arm, with the seeds 0, 1, ...", low=1, group="output")
    photos: Path = setting(
        Path("photos"), "folder of the manifest's photos", metavar="FOLDER", group=DATA
    )
    manifest: Path = inherit(LoopConfig, "manifest", Path("models/nano/photos.csv"))
    old_photos: Path = setting(
        Path("docs/photos/old"),
        "folder of old photos for the real set",
        metavar="FOLDER",
        group=DATA,
    )
    cache: Path = inherit(LoopConfig, "cache")
    base: Path = setting(
        Path("runs/nano/base"),
        "nano's base, as made by the first three commands of its model card",
        metavar="FOLDER",
        group=MODEL,
    )
    recipes: Path = setting(
        Path(__file__).parent / "recipes" / "nano_ablations.toml",
        "TOML file with a table for each run, or a folder with a file for each",
        group=MODEL,
    )
    canvas: int = inherit(LoopConfig, "canvas", 256, help="side in pixels of the recipes' canvas")
    text_tokens: int = inherit(Settings, "text_tokens", 0, group=MODEL)


@dataclass(frozen=True)
class Run:
    """A training run; its recipe has the run's name.

    Attributes:
        train: The stage's command.
        starts_from: Flag -> path of the weights to start from, relative to the seed's folder.
        own_randomness: Whether its seed differs from that of the run it continues from, so that
            noise and fadings are not repeated.
    """

    train: Callable[[list[str]], None]
    starts_from: dict[str, str] = field(default_factory=dict)
    own_randomness: bool = False


STAGES_1_AND_2 = {"controlnet": "structure", "redux": "both"}
RUNS = {
    "structure": Run(structure.main),
    "both": Run(basic_color.main, {"controlnet": "structure"}),
    "flow": Run(basic_color.main, {"controlnet": "structure"}),
    "distill": Run(basic_color.main),
    "joint": Run(basic_color.main),
    "null_prompt": Run(structure.main, {"redux": "null_redux"}),
    "pro_dpo_a": Run(pro_dpo.main, STAGES_1_AND_2),
    "pro_dpo_b": Run(
        pro_dpo.main, STAGES_1_AND_2 | {"initial_lora": f"pro_dpo_a/{LORA}"}, own_randomness=True
    ),
    "one_stage": Run(pro_dpo.main, STAGES_1_AND_2),
    "sft": Run(pro_dpo.main, STAGES_1_AND_2),
}


def main(argv: list[str]) -> None:
    config = parse(AblationsConfig, argv, "training.ablations")
    sets = benchmark(config)
    for seed in range(config.seeds):
        train_all(config, seed)
    for seed in range(config.seeds):
        colorize_all(config, seed, sets)
    write_tables(config.output, sets, config.seeds)


def benchmark(config: AblationsConfig) -> list[BenchmarkSet]:
    """All three benchmark sets at nano's canvas size, of photos outside the training set."""
    folder = config.output / "sets"
    test = read_manifest(config.manifest, config.photos, "test")
    old = sorted(config.old_photos.glob("*.jpg"))
    photos = [photo.file for photo in test]
    for reason in build_sets(photos, old, folder, Recipe(square=config.canvas)):
        logger.info("skipped: %s", reason)
    return read_sets(folder)


def train_all(config: AblationsConfig, seed: int) -> None:
    """Train all runs of a seed that are not finished.

    Raises ColorFluxError if a finished run was made with other recipes, photos or another base.
    """
    folder = config.output / f"seed-{seed}"
    make_null_redux(config, folder / "null_redux")
    for name, run in RUNS.items():
        output = folder / name
        flags = [
            f"--recipe={recipe_place(config, name)}",
            f"--base={config.base}",
            f"--manifest={config.manifest}",
            f"--photos={config.photos}",
            f"--cache={config.cache}",
            f"--output={output}",
            f"--seed={seed + 1000 * run.own_randomness}",
            *(f"--{flag}={folder / path}" for flag, path in run.starts_from.items()),
            "--tracker=none",
            "--resume",
        ]
        made_by = provenance(config, folder, name)
        if (output / PROVENANCE).is_file():
            require_same_provenance(output, made_by)
            continue
        logger.info("seed %d: %s", seed, name)
        run.train(flags)
        write_file(output / PROVENANCE, made_by.encode())
        gc.collect()


def provenance(config: AblationsConfig, folder: Path, name: str) -> str:
    """A hash of a run's recipe, photos and base, and of its parent runs' hashes.

    Raises ColorFluxError if the recipe or the manifest cannot be read.
    """
    run = RUNS[name]
    recipe = read_recipe(recipe_place(config, name), name)
    settings = recipe_flags(recipe.defaults | recipe.settings)
    photos = [f"{row['file']} {row['split']}" for row in manifest_rows(config.manifest)]
    parents = sorted({Path(path).parts[0] for path in run.starts_from.values()})
    parent_hashes = [(folder / path / PROVENANCE).read_text(encoding="utf-8") for path in parents]
    inputs = [run.own_randomness, settings, photos, base_hash(config.base), parent_hashes]
    return digest(repr(inputs).encode())


def recipe_place(config: AblationsConfig, name: str) -> str:
    """What ``--recipe`` names for a run: its table, or its file in a folder of recipes."""
    if config.recipes.is_dir():
        return str(config.recipes / f"{name}.toml")
    return f"{config.recipes}:{name}"


@cache
def base_hash(base: Path) -> str:
    return digest(*(path.read_bytes() for path in sorted(base.rglob("*.safetensors"))))


def require_same_provenance(output: Path, made_by: str) -> None:
    if (output / PROVENANCE).read_text(encoding="utf-8") != made_by:
        raise ColorFluxError(
            f"{output} was made with another recipe, base or manifest, or from a run that was:"
            " delete it, or use another --output"
        )


def make_null_redux(config: AblationsConfig, folder: Path) -> None:
    """Save a Redux with zero weights, whose visual prompt is always zero."""
    redux = load_model("image_embedder", config.base, torch.float32)
    with torch.no_grad():
        for parameter in redux.parameters():
            parameter.zero_()
    redux.save_pretrained(folder / "image_embedder")
    write_file(folder / PROVENANCE, b"zero")


def colorize_all(config: AblationsConfig, seed: int, sets: list[BenchmarkSet]) -> None:
    """Colorize the benchmark sets with every arm of a seed."""
    folder = config.output / f"seed-{seed}"
    for name, arm in ARMS.items():
        logger.info("seed %d: colorizing with %s", seed, name)
        parts = [part for part in (arm.controlnet, arm.redux, arm.lora) if part]
        made_by = {part: (folder / part / PROVENANCE).read_text(encoding="utf-8") for part in parts}
        colorize_sets(
            partial(bundle, config, folder, arm),
            sets_for(name, sets),
            folder / "results" / name,
            made_by | {"arm": repr(arm)},
        )


def bundle(config: AblationsConfig, folder: Path, arm: Arm) -> Bundle:
    """An arm's bundle, from the runs in the seed's folder."""
    parts = assemble(
        transformer=config.base,
        vae=config.base,
        image_encoder=config.base,
        image_embedder=folder / arm.redux if arm.redux else config.base,
        controlnet=folder / arm.controlnet,
        lora=folder / arm.lora / LORA if arm.lora else None,
    )
    parts.pipeline.set_progress_bar_config(disable=True)
    settings = Settings(
        canvas=Canvas("square", config.canvas),
        text_tokens=config.text_tokens,
        control_scale=arm.control_scale,
    )
    return replace(parts, settings=settings)


if __name__ == "__main__":
    run_command(main)
