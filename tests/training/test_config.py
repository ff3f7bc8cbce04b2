"""Settings: the paper's defaults, recipes, flags, help, and what is refused."""

from __future__ import annotations

import re
import shlex
import signal
import sys
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest

from colorflux_core.errors import ColorFluxError
from tests.training.tiny_training import CANVAS, Setup
from training import basic_color, pretrain, pro_dpo, structure
from training.basic_color import BasicColorConfig
from training.bundle import BundleConfig
from training.config import Config, parse
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
CONFIGS: dict[str, type[Config]] = {
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


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: "/".join(path.parts[-2:]))
def test_recipes_fit_the_commands_in_their_comments(
    recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Run from the project's folder, all that is in the file is in force."""
    monkeypatch.chdir(ROOT)
    text = recipe.read_text(encoding="utf-8")
    commands = re.findall(r"^# (?:python|accelerate launch .*) -m training\.(.+)", text, re.M)
    assert commands
    for command in commands:
        module, *words = shlex.split(command)
        part = [words.pop(0)] if module == "pretrain" else []
        name = " ".join([module, *part])
        assert words[-1] == recipe.relative_to(ROOT).as_posix() or words[-2] == "--photos"
        config: Any = parse(CONFIGS[name], words)
        for key, value in tomllib.loads(text).items():
            setting = getattr(config, key)
            assert (str(setting) if isinstance(setting, Path) else setting) == value
        moved: Any = parse(CONFIGS[name], [*words, "--output", "elsewhere"])
        assert moved.output == Path("elsewhere") and replace(moved, output=config.output) == config


def test_flags_win_over_the_recipe_over_the_defaults(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text('batch_size = 8\nrank = 2\noverexposure = true\nbase = "b"\n', "utf-8")
    for flag in ("--batch_size", "--batch-size"):
        for argv in (["--recipe", str(recipe), flag, "4"], [flag, "4", "--recipe", str(recipe)]):
            config = parse(ProDpoConfig, argv)
            assert (config.batch_size, config.rank, config.overexposure) == (4, 2, True)
            assert (config.base, config.beta) == (Path("b"), 1000)


def test_a_later_recipe_wins_over_an_earlier_one(tmp_path: Path) -> None:
    """Where they speak of the same setting; even with the default's value."""
    first, second = tmp_path / "first.toml", tmp_path / "second.toml"
    first.write_text("rank = 2\nbeta = 10.0\npairs = 3\n", encoding="utf-8")
    second.write_text("rank = 4\nbeta = 1000.0\n", encoding="utf-8")
    given = ["--recipe", str(first), "--recipe", str(second)]
    config = parse(ProDpoConfig, given)
    assert (config.rank, config.beta, config.pairs) == (4, 1000, 3)
    config = parse(ProDpoConfig, [*given[2:], *given[:2]])
    assert (config.rank, config.beta, config.pairs) == (2, 10, 3)
    assert parse(ProDpoConfig, [*given, "--rank", "8"]).rank == 8


# What is refused


@pytest.mark.parametrize(
    ("recipe", "flags", "named"),
    [
        (None, ["--nonsense", "1"], "--nonsense"),
        (None, ["--rank", "many"], "--rank"),
        (None, ["--loss", "ppo"], "--loss.*'dpo', 'sft'"),
        (None, ["--batch", "4"], "--batch"),
        (None, ["--recipe", "missing.toml"], "--recipe missing.toml"),
        ("rnak = 4", [], "recipe.toml.*--rnak"),
        ("rank = 'many'", [], "recipe.toml.*--rank"),
        ("rank = 1.5", [], "recipe.toml.*--rank"),
        ("loss = 'ppo'", [], "recipe.toml.*--loss"),
        ("[lora]\nrank = 4", [], "recipe.toml.*--lora"),
        ("rank: 4", [], "recipe.toml.*TOML"),
        ("rank = 0", [], "--rank is 0: it must be at least 1"),
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
    with pytest.raises(ColorFluxError, match=rf"^--{flag} is .*: it must be (at least|from) "):
        parse(CONFIGS[name], [f"--{flag}={value}"])


@pytest.mark.parametrize("name", CONFIGS)
def test_a_default_of_its_own_changes_nothing_else_of_a_setting(name: str) -> None:
    """A stage's learning rate, say, is as free and as bounded as any."""
    own = {field.name: field for field in fields(CONFIGS[name])}
    for base in CONFIGS[name].__mro__:
        for field in fields(base) if issubclass(base, Config) else ():
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
        ("--canvas", "40", "multiples of 16"),
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
        (pro_dpo.main, [], "--initial_lora FOLDER_OF_A"),
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
    assert re.search(r"--learning_rate.*\n.*(peak learning rate)", shown)
    assert "python -m training." in shown


@pytest.mark.parametrize("name", CONFIGS)
def test_every_setting_is_explained(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """With what it is where it is not given."""
    with pytest.raises(SystemExit):
        parse(CONFIGS[name], ["--help"])
    shown = capsys.readouterr().out
    for field in fields(CONFIGS[name]):
        assert f"--{field.name} " in shown
    assert len(re.findall(r"\(default:\s", shown)) > len(fields(CONFIGS[name]))


def ending(monkeypatch: pytest.MonkeyPatch, main: Callable[[list[str]], None], *words: str) -> Any:
    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(sys, "argv", ["training", *words])
    with pytest.raises(SystemExit) as end:
        run_command(main)
    signal.signal(signal.SIGTERM, before)
    return end.value.code


def test_a_mistake_ends_it_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    said = ending(monkeypatch, structure.main, "--stesp", "3")
    assert said == "error: unrecognized arguments: --stesp 3 (--help explains)"


def test_ctrl_c_before_the_first_step_ends_it_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(argv: list[str]) -> None:
        signal.raise_signal(signal.SIGTERM)

    assert ending(monkeypatch, interrupted) == 130
    assert capsys.readouterr().err == "stopped; the same command goes on from here\n"


def test_a_fading_range_that_is_turned_around_is_named() -> None:
    with pytest.raises(ColorFluxError, match=r"--fading_low 0\.9 is above --fading_high 0\.8"):
        parse(ProDpoConfig, ["--fading_low", "0.9"])
