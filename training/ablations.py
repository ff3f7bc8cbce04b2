"""Run the paper's ablations on nano.

  python -m training.ablations --photos PHOTOS

Every arm of Tables 2, 3 and 4 and of Figure 5 is trained from one base, with as many steps as the
arms it is compared with, once for each seed, and colorizes photos that training never saw. Then the
tables are written. Finished runs are kept: after an interruption, the same command continues.
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
from colorflux_core.options import inherit, setting
from colorflux_core.photos.canvas import Canvas

from . import basic_color, pro_dpo, structure
from .ablation.tables import ARMS, Arm, sets_for, write_tables
from .config import DATA, MODEL, Config, LoopConfig, parse, read_recipe, recipe_flags
from .data.manifest import manifest_rows, read_manifest
from .launch import run_command

logger = logging.getLogger(__name__)

LORA = "pro_dpo.safetensors"
FINISHED = "made-by.txt"
"""In a run's folder once it is finished: what it was made of, as a hash."""


@dataclass
class AblationsConfig(Config):
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
    """A training run, by the name of its table in the recipes; paths are in the seed's folder."""

    train: Callable[[list[str]], None]
    starts_from: dict[str, str] = field(default_factory=dict)
    draws_anew: bool = False
    """Not with the noise and the fadings of the run that it goes on from."""


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
        pro_dpo.main, STAGES_1_AND_2 | {"initial_lora": f"pro_dpo_a/{LORA}"}, draws_anew=True
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
    """All three sets at nano's canvas, of photos that training never saw."""
    folder = config.output / "sets"
    test = read_manifest(config.manifest, config.photos, "test")
    old = sorted(config.old_photos.glob("*.jpg"))
    photos = [photo.file for photo in test]
    for reason in build_sets(photos, old, folder, Recipe(square=config.canvas)):
        logger.info("left out: %s", reason)
    return read_sets(folder)


def train_all(config: AblationsConfig, seed: int) -> None:
    """Raises ColorFluxError when what is there was made by other recipes, photos or base."""
    folder = config.output / f"seed-{seed}"
    make_null_redux(config, folder / "null_redux")
    for name, planned in RUNS.items():
        output = folder / name
        flags = [
            f"--recipe={recipe_place(config, name)}",
            f"--base={config.base}",
            f"--manifest={config.manifest}",
            f"--photos={config.photos}",
            f"--cache={config.cache}",
            f"--output={output}",
            f"--seed={seed + 1000 * planned.draws_anew}",
            *(f"--{flag}={folder / path}" for flag, path in planned.starts_from.items()),
            "--tracker=none",
            "--resume",
        ]
        made_by = provenance(config, folder, name)
        if (output / FINISHED).is_file():
            require_same(output, made_by)
            continue
        logger.info("seed %d: %s", seed, name)
        planned.train(flags)
        write_file(output / FINISHED, made_by.encode())
        gc.collect()


def provenance(config: AblationsConfig, folder: Path, name: str) -> str:
    """A hash of what a run is made of: recipe, photos, base, and such hashes of the runs before it.

    Raises ColorFluxError when the recipe or the manifest cannot be read.
    """
    planned = RUNS[name]
    recipe = read_recipe(recipe_place(config, name), name)
    settings = recipe_flags(recipe.defaults | recipe.settings)
    photos = [f"{row['file']} {row['split']}" for row in manifest_rows(config.manifest)]
    parents = sorted({Path(path).parts[0] for path in planned.starts_from.values()})
    before = [(folder / parent / FINISHED).read_text(encoding="utf-8") for parent in parents]
    made_of = [planned.draws_anew, settings, photos, base_hash(config.base), before]
    return digest(repr(made_of).encode())


def recipe_place(config: AblationsConfig, name: str) -> str:
    """What ``--recipe`` names for a run: its table, or its file in a folder of recipes."""
    if config.recipes.is_dir():
        return str(config.recipes / f"{name}.toml")
    return f"{config.recipes}:{name}"


@cache
def base_hash(base: Path) -> str:
    return digest(*(path.read_bytes() for path in sorted(base.rglob("*.safetensors"))))


def require_same(output: Path, made_by: str) -> None:
    if (output / FINISHED).read_text(encoding="utf-8") != made_by:
        raise ColorFluxError(
            f"{output} was made with another recipe, base or manifest, or from a run that was:"
            " remove it, or give another --output"
        )


def make_null_redux(config: AblationsConfig, folder: Path) -> None:
    """A Redux whose prompt is zero, whatever it is shown."""
    redux = load_model("image_embedder", config.base, torch.float32)
    with torch.no_grad():
        for parameter in redux.parameters():
            parameter.zero_()
    redux.save_pretrained(folder / "image_embedder")
    write_file(folder / FINISHED, b"zero")


def colorize_all(config: AblationsConfig, seed: int, sets: list[BenchmarkSet]) -> None:
    folder = config.output / f"seed-{seed}"
    for name, arm in ARMS.items():
        logger.info("seed %d: colorizing with %s", seed, name)
        parts = [part for part in (arm.controlnet, arm.redux, arm.lora) if part]
        made_by = {part: (folder / part / FINISHED).read_text(encoding="utf-8") for part in parts}
        colorize_sets(
            partial(bundle, config, folder, arm),
            sets_for(name, sets),
            folder / "results" / name,
            made_by | {"arm": repr(arm)},
        )


def bundle(config: AblationsConfig, folder: Path, arm: Arm) -> Bundle:
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
