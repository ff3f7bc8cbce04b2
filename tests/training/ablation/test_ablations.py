"""The ablations: equal budgets, all arms and tables, and going on where they were stopped."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from colorflux_core.bundles.components import load_model
from colorflux_core.errors import ColorFluxError
from colorflux_core.evaluation.report.table_text import escape_markdown
from colorflux_core.evaluation.scores import TRUTH, read_scores
from colorflux_core.model.visual_prompt import prompt_from_tokens
from tests.training.tiny_training import CANVAS, Setup
from training.ablation.tables import ARMS, TABLES
from training.ablations import PROVENANCE, RUNS, AblationsConfig, main
from training.config import read_recipe

BUDGET = ("manifest", "canvas", "views", "batch_size", "timestep_density", "precision")


def shipped(name: str) -> dict[str, Any]:
    recipe = read_recipe(f"{AblationsConfig().recipes}:{name}", name)
    return recipe.defaults | recipe.settings


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (["structure", "both"], ["joint"]),
        (["structure", "both"], ["null_prompt"]),
        (["both"], ["flow"]),
        (["both"], ["distill"]),
        (["pro_dpo_a", "pro_dpo_b"], ["one_stage"]),
        (["pro_dpo_a", "pro_dpo_b"], ["sft"]),
    ],
)
def test_arms_that_are_compared_have_equal_budgets(one: list[str], other: list[str]) -> None:
    recipes = [[shipped(name) for name in names] for names in (one, other)]
    steps = [sum(recipe["steps"] for recipe in of) for of in recipes]
    assert steps[0] == steps[1] > 0
    first, *others = [{key: recipe[key] for key in BUDGET} for of in recipes for recipe in of]
    assert all(budget == first for budget in others)


@pytest.mark.parametrize(
    ("one", "other", "differs"),
    [
        ("both", "flow", {"loss"}),
        ("both", "distill", {"loss"}),
        ("structure", "null_prompt", {"steps"}),
        (
            "structure",
            "joint",
            {"steps", "learning_rate", "weight_decay", "train", "loss", "token_dropout"},
        ),
        ("pro_dpo_a", "pro_dpo_b", {"learning_rate", "fading_low", "fading_high"}),
        ("pro_dpo_a", "one_stage", {"steps", "fading_high"}),
        ("one_stage", "sft", {"loss"}),
    ],
)
def test_arms_differ_in_what_the_documentation_says(
    one: str, other: str, differs: set[str]
) -> None:
    first, second = shipped(one), shipped(other)
    keys = first.keys() | second.keys()
    assert {key for key in keys if first.get(key) != second.get(key)} == differs


def test_every_run_is_for_an_arm_and_every_arm_in_a_table() -> None:
    used = {part for arm in ARMS.values() for part in (arm.controlnet, arm.redux, arm.lora)}
    assert set(RUNS) - {"pro_dpo_a"} == used - {None, "null_redux"}
    assert {arm for table in TABLES.values() for arm in table.rows.values()} == set(ARMS)


TINY = f"""
canvas = {CANVAS}
text_tokens = 2
steps = 1
batch_size = 2
workers = 0
precision = "no"
frozen = "float32"
"""
CHANGES = {
    "structure": "double_blocks = 1\nsingle_blocks = 2",
    "null_prompt": "double_blocks = 1\nsingle_blocks = 2",
    "joint": 'double_blocks = 1\nsingle_blocks = 2\ntrain = "redux+controlnet"\nloss = "flow"',
    "flow": 'loss = "flow"',
    "distill": 'loss = "distill"',
    **dict.fromkeys(["pro_dpo_a", "pro_dpo_b", "one_stage"], "rank = 4\npairs = 1"),
    "sft": 'rank = 4\npairs = 1\nloss = "sft"',
}


Command = Callable[[], None]


@pytest.fixture(scope="module")
def ablations(
    setup: Setup, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Command, dict[str, int]]:
    """The command on a tiny base, one step per run, and its folder after all runs; and the files of
    a first try, which a missing table stopped."""
    folder = tmp_path_factory.mktemp("ablations")
    manifest = folder / "photos.csv"
    held_out = "8.png,test\n9.png,test\n"
    manifest.write_text((setup.folder / "photos.csv").read_text() + held_out)
    (folder / "old").mkdir()
    gray = (setup.folder / "photos" / "7.png").read_bytes()
    (folder / "old" / "grandma.jpg").write_bytes(gray)
    recipes = folder / "recipes.toml"
    tables = [f"[{name}]\n{CHANGES.get(name, '')}" for name in RUNS if name != "sft"]
    recipes.write_text("\n".join([f"[defaults]{TINY}", *tables]))
    flags = {
        "output": folder / "output",
        "base": setup.folder / "base",
        "photos": setup.folder / "photos",
        "manifest": manifest,
        "old_photos": folder / "old",
        "recipes": recipes,
        "cache": setup.folder / "cache",
        "canvas": CANVAS,
        "text_tokens": 2,
        "seeds": 2,
    }

    def command() -> None:
        main([f"--{flag}={value}" for flag, value in flags.items()])

    with pytest.raises(ColorFluxError, match=r"recipes\.toml: has no table sft"):
        command()
    before = times(folder / "output")
    recipes.write_text(f"{recipes.read_text()}\n[sft]\n{CHANGES['sft']}")
    command()
    return folder / "output", command, before


def times(folder: Path) -> dict[str, int]:
    """When each result and trained part was written."""
    files = [*folder.glob("seed-*/**/*.png"), *folder.glob("seed-*/**/*.safetensors")]
    return {str(path): path.stat().st_mtime_ns for path in files if "null_redux" not in path.parts}


def test_after_a_stop_nothing_is_made_again(
    ablations: tuple[Path, Command, dict[str, int]],
) -> None:
    output, command, before = ablations
    after = times(output)
    assert before
    assert {path: after[path] for path in before} == before
    tables = {path: path.read_bytes() for path in output.glob("tables/*/*.csv")}
    command()
    assert times(output) == after
    assert {path: path.read_bytes() for path in output.glob("tables/*/*.csv")} == tables


@pytest.mark.parametrize("name", TABLES)
def test_every_table_has_all_rows_seeds_and_images(
    ablations: tuple[Path, Command, dict[str, int]], name: str
) -> None:
    folder = ablations[0] / "tables" / name
    measured = {
        (score.set, score.method, score.image)
        for score in read_scores(folder / "scores.csv")
        if score.metric == "colorfulness" and score.method != TRUTH and not score.is_missing
    }
    images = {"synthesized": ["8", "9"], "augmented": ["8", "9"], "real": ["grandma"]}
    assert measured == {
        (benchmark, f"{row}, seed {seed}", image)
        for benchmark in TABLES[name].sets
        for image in images[benchmark]
        for row in TABLES[name].rows
        for seed in range(2)
    }
    report = (folder / "report.md").read_text(encoding="utf-8")
    together = (ablations[0] / "tables.md").read_text(encoding="utf-8")
    for row in TABLES[name].rows:
        assert f"| {escape_markdown(row)} |" in report
        assert f"| {escape_markdown(row)} |" in together


def test_another_recipe_is_not_taken_for_the_one_before(
    ablations: tuple[Path, Command, dict[str, int]],
) -> None:
    """Nor is a run that starts from what it made."""
    output, command, _ = ablations
    recipes = output.parent / "recipes.toml"
    before = recipes.read_text()
    recipes.write_text(before.replace("[pro_dpo_a]\n", "[pro_dpo_a]\nbeta = 10.0\n"))
    with pytest.raises(ColorFluxError, match=r"pro_dpo_a was made with another recipe"):
        command()
    recipes.write_text(before)
    (output / "seed-0" / "both" / PROVENANCE).write_text("of other photos")
    with pytest.raises(ColorFluxError, match=r"both was made with another"):
        command()


def test_the_null_prompt_is_zero(ablations: tuple[Path, Command, dict[str, int]]) -> None:
    redux = load_model("image_embedder", ablations[0] / "seed-0" / "null_redux", torch.float32)
    assert not prompt_from_tokens(redux, torch.randn(2, 4, redux.config.redux_dim)).any()


@pytest.mark.parametrize(
    "part", ["structure/controlnet", "joint/image_embedder", "both/image_embedder"]
)
def test_seeds_differ(ablations: tuple[Path, Command, dict[str, int]], part: str) -> None:
    one, other = (
        [path.read_bytes() for path in (ablations[0] / f"seed-{seed}" / part).glob("*.safetensors")]
        for seed in range(2)
    )
    assert len(one) == len(other) == 1
    assert one != other
