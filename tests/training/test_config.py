"""Settings: the paper's defaults, recipes, flags, help, and what is refused."""

from __future__ import annotations

import re
import shlex
import signal
import sys
from collections.abc import Callable
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from colorflux_core.cli.flags import described
from colorflux_core.errors import ColorFluxError
from colorflux_core.options import Options, settings
from tests.training.tiny_training import CANVAS, Setup
from training import basic_color, pretrain, pro_dpo, structure
from training.basic_color import BasicColorConfig
from training.bundle import BundleConfig
from training.config import known_settings, parse
from training.launch import run_command
from training.nano.flux import FluxConfig
from training.nano.vae import VaeConfig
from training.pretrain import VisionConfig
from training.pro_dpo import ProDpoConfig
from training.structure import StructureConfig

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[2]
CONFIGS: dict[str, type[Options]] = {
    "structure": StructureConfig,
    "basic_color": BasicColorConfig,
    "pro_dpo": ProDpoConfig,
    "pretrain vision": VisionConfig,
    "pretrain vae": VaeConfig,
    "pretrain flux": FluxConfig,
    "bundle": BundleConfig,
}
RECIPES = sorted((ROOT / "training" / "recipes").rglob("*.toml"))


def test_defaults_are_the_papers() -> None:
    """Paper 7.1 to 7.3."""
    first, second, third = StructureConfig(), BasicColorConfig(), ProDpoConfig()
    assert (first.batch_size, first.learning_rate, first.epochs) == (64, 1e-5, 5)
    assert (first.double_blocks, first.single_blocks) == (4, 10)
    assert (second.batch_size, second.learning_rate, second.epochs) == (64, 1e-5, 2)
    assert (second.loss, second.alpha, second.min_colorfulness) == ("both", 0.1, 15)
    assert second.train == "redux"
    assert (third.batch_size, third.learning_rate, third.epochs) == (32, 4e-5, 2)
    assert (third.rank, third.beta, third.beta_schedule) == (32, 1000, "constant")
    assert (third.fading_low, third.fading_high, third.overexposure) == (0.5, 0.8, False)
    assert (third.loss, third.pairs) == ("dpo", 0)
    assert (third.min_saturation, third.max_saturation) == (0.3, 0.7)
    assert (third.min_value, third.max_value) == (0.4, 0.8)
    for config in (first, second, third):
        assert (config.canvas, config.steps, config.schedule) == (1024, 0, "constant")
        assert (config.guidance, config.text_tokens) == (3.5, 512)


# Recipes and flags


def commands(recipe: Path) -> list[list[str]]:
    """The commands in a recipe's comments, without what starts Python."""
    text = recipe.read_text(encoding="utf-8")
    found = re.findall(r"^# +(?:python|accelerate launch .*) -m training\.(.+)", text, re.M)
    return [shlex.split(command) for command in found]


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_recipes_fit_the_commands_in_their_comments(
    recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Run from the project's folder; every setting of every table is used by a command."""
    monkeypatch.chdir(ROOT)
    content = tomllib.loads(recipe.read_text(encoding="utf-8"))
    defaults = content.pop("defaults", {})
    unused = {(table, key) for table in content for key in content[table]}
    unused |= {("defaults", key) for key in defaults}
    for module, *words in commands(recipe):
        part = [words.pop(0)] if module == "pretrain" else []
        name = " ".join([module, *part])
        command = [module, *part][-1]
        config: Any = parse(CONFIGS[name], words, f"training.{name}")
        place = [word for word in words if ".toml" in word][-1]
        assert place.partition(":")[0] == recipe.relative_to(ROOT).as_posix()
        table = place.partition(":")[2] or command
        for key, value in (defaults | content[table]).items():
            if hasattr(config, key):
                setting = getattr(config, key)
                assert (str(setting) if isinstance(setting, Path) else setting) == value
                unused.discard((table if key in content[table] else "defaults", key))
        moved: Any = parse(CONFIGS[name], [*words, "--output", "elsewhere"], f"training.{name}")
        assert moved.output == Path("elsewhere") and replace(moved, output=config.output) == config
    assert not unused


def test_flags_win_over_the_recipe_over_the_defaults(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text('batch_size = 8\nrank = 2\noverexposure = true\nbase = "b"\n', "utf-8")
    for flag in ("--batch_size", "--batch-size"):
        for argv in (["--recipe", str(recipe), flag, "4"], [flag, "4", "--recipe", str(recipe)]):
            config = parse(ProDpoConfig, argv)
            assert (config.batch_size, config.rank, config.overexposure) == (4, 2, True)
            assert (config.base, config.beta) == (Path("b"), 1000)


def test_a_later_recipe_wins_over_an_earlier_one(tmp_path: Path) -> None:
    """If both have a setting, even with the default's value."""
    first, second = tmp_path / "first.toml", tmp_path / "second.toml"
    first.write_text("rank = 2\nbeta = 10.0\npairs = 3\n", encoding="utf-8")
    second.write_text("rank = 4\nbeta = 1000.0\n", encoding="utf-8")
    given = ["--recipe", str(first), "--recipe", str(second)]
    config = parse(ProDpoConfig, given)
    assert (config.rank, config.beta, config.pairs) == (4, 1000, 3)
    config = parse(ProDpoConfig, [*given[2:], *given[:2]])
    assert (config.rank, config.beta, config.pairs) == (2, 10, 3)
    assert parse(ProDpoConfig, [*given, "--rank", "8"]).rank == 8


TABLES = """
[defaults]
rank = 2
double_blocks = 3

[pro_dpo]
beta = 10.0

[stage_b]
rank = 8
"""


def test_a_recipe_is_the_defaults_and_a_table(tmp_path: Path) -> None:
    """Defaults that only other commands have are left to them."""
    recipe = tmp_path / "machine.toml"
    recipe.write_text(TABLES, encoding="utf-8")
    config = parse(ProDpoConfig, ["--recipe", str(recipe)], "training.pro_dpo")
    assert (config.rank, config.beta) == (2, 10)
    config = parse(ProDpoConfig, ["--recipe", f"{recipe}:stage_b"], "training.pro_dpo")
    assert (config.rank, config.beta) == (8, 1000)


@pytest.mark.parametrize(
    ("content", "table", "named"),
    [
        ("[stage_a]\n[stage_b]", "", r"has no table pro_dpo.*TABLE \(it has stage_a, stage_b\)"),
        ("[stage_a]\n[stage_b]", ":c", r"has no table c:.*\(it has stage_a, stage_b\)"),
        ("[defaults]\nrank = 1\n[a]", ":defaults", r"has no table defaults.*\(it has a\)"),
        ("rank = 2", ":a", r"has no table a.*\(it has no table\)"),
        ("rank = 2\n[pro_dpo]", "", r"rank is in no table: move it to \[defaults\]"),
        ("[defaults]\nstpes = 2\n[pro_dpo]", "", "setting stpes: did you mean steps"),
        ("[defaults]\nbatchsize = 2\n[pro_dpo]", "", "batchsize: did you mean batch_size"),
        ("[pro_dpo]\ndouble_blocks = 2", "", "unrecognized argument --double_blocks"),
    ],
)
def test_mistakes_in_tables_are_named(tmp_path: Path, content: str, table: str, named: str) -> None:
    (tmp_path / "recipe.toml").write_text(content, encoding="utf-8")
    with pytest.raises(ColorFluxError, match=rf"--recipe .*recipe\.toml.*: .*{named}"):
        parse(ProDpoConfig, [f"--recipe={tmp_path / 'recipe.toml'}{table}"], "training.pro_dpo")


@pytest.mark.parametrize("name", CONFIGS)
def test_no_other_commands_setting_counts_as_misspelled(name: str) -> None:
    """Or a recipe with it among its defaults would be refused."""
    everything: dict[str, Any] = {key: 0 for config in CONFIGS.values() for key in settings(config)}
    assert known_settings(everything, CONFIGS[name]).keys() == settings(CONFIGS[name]).keys()


# What is refused


@pytest.mark.parametrize(
    ("recipe", "flags", "named"),
    [
        (None, ["--nonsense", "1"], "--nonsense"),
        (None, ["--batch_szie", "1"], "--batch_szie: did you mean --batch-size"),
        (None, ["--rank", "many"], "--rank"),
        (None, ["--loss", "ppo"], "--loss.*'dpo', 'sft'"),
        (None, ["--batch", "4"], "--batch"),
        (None, ["--recipe", "missing.toml"], "--recipe missing.toml"),
        ("rnak = 4", [], "recipe.toml.*--rnak"),
        ("rank = 'many'", [], "recipe.toml.*--rank"),
        ("rank = 1.5", [], "recipe.toml.*--rank"),
        ("loss = 'ppo'", [], "recipe.toml.*--loss"),
        ("rank: 4", [], "recipe.toml.*TOML"),
        ("rank = 0", [], "--rank: 0 is out of range: it must be at least 1"),
    ],
)
def test_unknown_settings_and_wrong_types_are_named(
    tmp_path: Path, recipe: str | None, flags: list[str], named: str
) -> None:
    if recipe is not None:
        (tmp_path / "recipe.toml").write_text(recipe, encoding="utf-8")
        flags = ["--recipe", str(tmp_path / "recipe.toml")]
    with pytest.raises(ColorFluxError, match=named) as refusal:
        parse(ProDpoConfig, flags)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("name", "flag", "value"),
    [
        ("structure", "learning_rate", "-1e-5"),
        ("structure", "learning_rate", "nan"),
        ("structure", "batch_size", "0"),
        ("structure", "micro_batch", "-1"),
        ("structure", "checkpoint_every", "0"),
        ("structure", "keep_checkpoints", "0"),
        ("structure", "workers", "-1"),
        ("structure", "canvas", "0"),
        ("structure", "views", "0"),
        ("structure", "epochs", "-1"),
        ("structure", "double_blocks", "-1"),
        ("structure", "ema_decay", "1.5"),
        ("structure", "guidance", "-3"),
        ("basic_color", "token_dropout", "1"),
        ("basic_color", "alpha", "-0.1"),
        ("pro_dpo", "rank", "0"),
        ("pro_dpo", "pairs", "-1"),
        ("pro_dpo", "beta", "-1000"),
        ("pro_dpo", "learning_rate", "-4e-5"),
        ("pro_dpo", "batch_size", "0"),
        ("pro_dpo", "fading_low", "-0.5"),
        ("pro_dpo", "max_value", "80"),
        ("pretrain vae", "crop", "0"),
        ("pretrain flux", "heads", "0"),
        ("bundle", "detail", "2"),
    ],
)
def test_values_out_of_range_are_named(name: str, flag: str, value: str) -> None:
    shown = f"--{flag.replace('_', '-')}"
    with pytest.raises(
        ColorFluxError, match=rf"^{shown}: .* it must be (a multiple of 16, )?(at least|from) "
    ):
        parse(CONFIGS[name], [f"--{flag}={value}"])
    with pytest.raises(
        ColorFluxError, match=rf"^{flag} is .*: it must be (a multiple of 16, )?(at least|from) "
    ):
        CONFIGS[name](**{flag: float(value)})


@pytest.mark.parametrize("name", CONFIGS)
def test_a_default_of_its_own_changes_nothing_else_of_a_setting(name: str) -> None:
    """A stage's learning rate, say, is as free and as bounded as any."""
    own = {field.name: field for field in fields(CONFIGS[name])}
    for base in CONFIGS[name].__mro__:
        for field in fields(base) if is_dataclass(base) else ():
            for kind in ("range", "may_change"):
                assert own[field.name].metadata[kind] == field.metadata[kind], field.name


FLAGS = ["--photos=photos", "--manifest=photos.csv", "--base=base", f"--canvas={CANVAS}"]
MAINS = [structure.main, basic_color.main, pro_dpo.main]


@pytest.mark.parametrize(
    ("flag", "value", "named"),
    [
        ("--manifest", "missing.csv", "--manifest"),
        ("--manifest", "headless.csv", "--manifest.*file.*split"),
        ("--manifest", "untrained.csv", "--manifest.*'train'"),
        ("--photos", "missing", "--photos"),
        ("--base", "missing", "--base"),
        ("--base", "photos", "--base"),
        ("--redux", "missing", "--redux"),
        ("--canvas", "40", "a multiple of 16, at least 16"),
        ("--output", "photos.csv/run", "--output"),
        ("--cache", "photos.csv/cache", "--cache"),
    ],
)
@pytest.mark.parametrize("main", MAINS, ids=lambda main: main.__module__)
def test_what_is_missing_is_named(
    setup: Setup,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    main: Callable[[list[str]], None],
    flag: str,
    value: str,
    named: str,
) -> None:
    monkeypatch.chdir(setup.folder)
    Path("headless.csv").write_text("0.png,train\n", encoding="utf-8")
    Path("untrained.csv").write_text("file,split\n0.png,test\n", encoding="utf-8")
    blocks = ["--double_blocks=1", "--single_blocks=2"] if main is structure.main else []
    given = [*FLAGS, *blocks, f"--output={tmp_path / 'run'}", f"--cache={tmp_path}", flag, value]
    with pytest.raises(ColorFluxError, match=named):
        main([*given, "--workers=0", "--text_tokens=2", "--tracker=none"])
    assert not (tmp_path / "run").exists()


def test_crops_fit_the_canvas_and_the_latents() -> None:
    for crop in ("12", "80"):
        with pytest.raises(ColorFluxError, match=f"--crop {crop} must be .* --canvas 64"):
            parse(VaeConfig, ["--crop", crop, "--canvas", "64"])


# The command line


@pytest.mark.parametrize(
    ("main", "argv", "taught"),
    [
        (structure.main, [], "Only the gray ControlNet is trained, with L_FM"),
        (basic_color.main, [], "(Eq. 6)"),
        (pro_dpo.main, [], "--initial-lora FOLDER_OF_A"),
        (pretrain.main, ["vision"], "stand-ins for published weights"),
        (pretrain.main, ["vae"], "1/8 size"),
        (pretrain.main, ["flux"], "from scratch"),
    ],
)
def test_help_teaches(
    capsys: pytest.CaptureFixture[str],
    main: Callable[[list[str]], None],
    argv: list[str],
    taught: str,
) -> None:
    with pytest.raises(SystemExit) as end:
        main([*argv, "--help"])
    shown = capsys.readouterr().out
    assert end.value.code == 0
    assert taught in shown
    assert re.search(r"--learning-rate.* peak learning rate", shown)
    assert f"\n  python -m {main.__module__} " in shown
    headings = ["data:", "optimization:", "memory and speed:", "checkpoints and logging:"]
    assert [line for line in shown.splitlines() if line in headings] == headings


@pytest.mark.parametrize("name", CONFIGS)
def test_every_setting_is_explained(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """With its default and its range."""
    with pytest.raises(SystemExit):
        parse(CONFIGS[name], ["--help"])
    shown = " ".join(capsys.readouterr().out.split())
    for field in fields(CONFIGS[name]):
        assert f" --{field.name.replace('_', '-')}" in shown
        assert described(field) in shown


def ending(monkeypatch: pytest.MonkeyPatch, main: Callable[[list[str]], None], *words: str) -> Any:
    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(sys, "argv", ["training", *words])
    with pytest.raises(SystemExit) as end:
        run_command(main)
    signal.signal(signal.SIGTERM, before)
    return end.value.code


def test_a_mistake_ends_it_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ending(monkeypatch, structure.main, "--stesp", "3") == 2
    error = "training: error: unrecognized argument --stesp: did you mean --steps?\n"
    assert capsys.readouterr().err == error


def test_what_is_done_ends_with_0(monkeypatch: pytest.MonkeyPatch) -> None:
    assert ending(monkeypatch, lambda _: None) == 0


def test_too_little_memory_is_a_mistake_that_can_be_mended(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def too_much(_: list[str]) -> None:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

    assert ending(monkeypatch, too_much) == 2
    assert "CUDA out of memory: use a smaller --micro-batch" in capsys.readouterr().err


def test_ctrl_c_before_the_first_step_ends_it_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(argv: list[str]) -> None:
        signal.raise_signal(signal.SIGTERM)

    assert ending(monkeypatch, interrupted) == 130
    line = "training: interrupted; the same command continues from here\n"
    assert capsys.readouterr().err == line


def test_a_fading_range_that_is_turned_around_is_named() -> None:
    with pytest.raises(ColorFluxError, match=r"--fading-low 0\.9 is above --fading-high 0\.8"):
        parse(ProDpoConfig, ["--fading_low", "0.9"])
