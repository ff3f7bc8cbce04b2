"""The command line, run as its users run it, on a tiny model of the real classes."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn

from colorflux_core.bundles.bundle import load_bundle, save_bundle
from colorflux_core.bundles.bundle_config import EMBEDDED_NANO
from colorflux_core.cli.command_line import FORMATS
from colorflux_core.colorize import main, parser, with_flags
from colorflux_core.model.colorization import colorize
from colorflux_core.model.lora import add_lora
from colorflux_core.model.settings import Settings
from colorflux_core.photos.canvas import Canvas
from colorflux_core.photos.photo import PHOTO_SUFFIXES, load_photo
from colorflux_core.s3diff.checkpoint import load_s3diff
from colorflux_core.s3diff.options import Restoration
from colorflux_core.s3diff.restorer import restore
from tests.cli.command_runs import (
    Result,
    Run,
    files,
    folder_of_scans,
    interrupted,
    many_scans,
    refused,
    result_of,
    resumed,
    scan,
    wait_for_a_result,
)
from tests.nano_models import tiny_pipeline
from tests.s3diff import models as s3diff_models

ROOT = Path(__file__).resolve().parents[2]
OLD_PHOTO = ROOT / "docs/photos/old/stdlib_french-alpine-landscape.jpg"
SETTINGS = Settings(canvas=Canvas("aspect", 32), steps=2, text_tokens=3, detail=0.5, seed=7)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundles") / "tiny"
    pipeline = tiny_pipeline()
    random = torch.Generator().manual_seed(0)
    for parameter in add_lora(pipeline.transformer, rank=2):
        nn.init.normal_(parameter, std=0.1, generator=random)
    save_bundle(folder, pipeline, SETTINGS)
    return folder


@pytest.fixture(scope="module")
def s3diff(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with S3Diff's checkpoint and SD-Turbo."""
    folder = tmp_path_factory.mktemp("s3diff")
    s3diff_models.save_sd_turbo(folder / "sd-turbo")
    s3diff_models.save_converted(folder)
    return folder


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], bundle: Path) -> Run:
    """Exit status and stderr's lines; with the tiny bundle unless the arguments name a model."""

    def run(command: str, *more: str) -> Result:
        model = [] if "--" in more else ["--bundle", str(bundle)]
        words = [*command.split(), *(word for word in more if word != "--"), *model]
        return result_of(main, words, capsys)

    return run


# What comes out


def test_a_photo_comes_out_as_the_library_makes_it(run: Run, bundle: Path) -> None:
    photo = load_photo(scan("a.png"))
    status, lines = run("a.png -o out/deep/b.png --steps 3 --seed 5")
    assert status == 0
    assert lines[0].startswith("a.png -> out/deep/b.png: 45x30, ")
    model = load_bundle(bundle).pipeline
    settings = Settings(canvas=Canvas("aspect", 32), steps=3, text_tokens=3, detail=0.5, seed=5)
    expected = (colorize(model, photo.pixels, settings) * 255).round().byte()
    assert torch.equal(load_photo("out/deep/b.png").pixels, expected)


def test_a_large_jpeg_keeps_its_size_and_format(run: Run) -> None:
    assert run(f"{OLD_PHOTO} -o out")[0] == 0
    with Image.open(OLD_PHOTO) as before, Image.open(f"out/{OLD_PHOTO.name}") as after:
        assert (after.size, after.format, after.mode) == (before.size, "JPEG", "RGB")


def test_a_color_photo_is_colorized_from_gray_and_said_to_be_so(run: Run) -> None:
    color = scan("color.png", (64, 48), "RGB")
    Image.open(color).convert("L").save("gray.png")
    status, lines = run("color.png gray.png -o out")
    assert status == 0
    assert [("was in color" in line) for line in lines[:2]] == [True, False]
    colored, grayed = (load_photo(f"out/{name}.png").rgb for name in ("color", "gray"))
    # Rounding the gray version to 8 bits is all the difference.
    assert (colored - grayed).abs().max() < 0.05


def test_a_reference_gives_the_visual_prompt(run: Run, bundle: Path) -> None:
    photo, reference = load_photo(scan("a.png")), load_photo(scan("r.png", mode="RGB"))
    assert run("a.png -o b.png --reference r.png")[0] == 0
    model = load_bundle(bundle).pipeline
    expected = colorize(model, photo.pixels, SETTINGS, reference=reference.rgb)
    assert torch.equal(load_photo("b.png").pixels, (expected * 255).round().byte())
    run("a.png -o c.png")
    assert Path("c.png").read_bytes() != Path("b.png").read_bytes()


def test_a_scan_is_restored_in_gray_first(run: Run, bundle: Path, s3diff: Path) -> None:
    photo = load_photo(scan("a.png", (300, 64), "RGB"))
    checkpoint, sd_turbo = s3diff / "s3diff.safetensors", s3diff / "sd-turbo"
    flags = f"--restore {checkpoint} --sd-turbo {sd_turbo} --restore-tile 256"
    status, lines = run(f"a.png -o b.png {flags}")
    assert status == 0
    assert lines[0].startswith("a.png -> b.png: 300x64, was in color")
    how = Restoration(tile=256, gray=True)
    restored = restore(load_s3diff(checkpoint, sd_turbo), photo.pixels[None], how)[0]
    expected = colorize(load_bundle(bundle).pipeline, restored, SETTINGS)
    assert torch.equal(load_photo("b.png").pixels, (expected * 255).round().byte())
    run("a.png -o c.png")
    assert Path("c.png").read_bytes() != Path("b.png").read_bytes()


def test_tiles_and_then_steps_are_counted_on_a_terminal(
    run: Run, s3diff: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scan("a.png")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    flags = f"--restore {s3diff / 's3diff.safetensors'} --sd-turbo {s3diff / 'sd-turbo'}"
    _, lines = run(f"a.png -o b.png {flags}")
    told = "".join(lines)
    places = [told.find(what) for what in ("tile 1 of 4", "tile 4 of 4", "step 1 of 2", "step 2")]
    assert -1 not in places
    assert places == sorted(places)


@pytest.mark.skipif(not (EMBEDDED_NANO / "colorflux.json").is_file(), reason="no nano")
def test_nano_is_the_default(run: Run) -> None:
    scan("a.png", (64, 48))
    assert run("a.png -o default.png --no-provenance", "--")[0] == 0
    assert run("a.png -o nano.png --bundle nano --no-provenance", "--")[0] == 0
    assert Path("default.png").read_bytes() == Path("nano.png").read_bytes()


def test_a_model_by_its_parts(run: Run, bundle: Path) -> None:
    scan("a.png")
    names = {"image_embedder": "redux", "image_encoder": "image-encoder"}
    parts = ("transformer", "vae", "image_encoder", "image_embedder", "controlnet")
    model = [f"--{names.get(part, part)}={bundle / part}" for part in parts]
    model += [f"--lora={bundle / 'pro_dpo.safetensors'}"]
    settings = "--canvas aspect --canvas-pixels 32 --steps 2 --text-tokens 3 --detail .5 --seed 7"
    assert run(f"a.png -o parts.png {settings}", *model, "--")[0] == 0
    assert run("a.png -o bundle.png")[0] == 0
    assert torch.equal(load_photo("parts.png").pixels, load_photo("bundle.png").pixels)


# Flags and settings

FLAGS: dict[str, tuple[str, Any]] = {
    "canvas": ("--canvas 48x64", Canvas("48x64", 32)),
    "steps": ("--steps 3", 3),
    "guidance": ("--guidance 0", 0.0),
    "control_scale": ("--control-scale 0", 0.0),
    "control_start": ("--control-start .25", 0.25),
    "control_end": ("--control-end .75", 0.75),
    "control_mode": ("--control-mode 0", 0),
    "lora_scale": ("--lora-scale 0", 0.0),
    "text_tokens": ("--text-tokens 0", 0),
    "detail": ("--detail 0", 0.0),
    "seed": ("--seed 0", 0),
}


def settings_by(flags: str) -> Settings:
    return with_flags(SETTINGS, parser().parse_args(["a.png", "-o", "b.png", *flags.split()]))


def test_every_setting_has_a_flag_that_sets_it_alone() -> None:
    assert FLAGS.keys() == {field.name for field in fields(Settings)}
    for name, (flag, value) in FLAGS.items():
        assert vars(settings_by(flag)) == {**vars(SETTINGS), name: value}
    assert settings_by("--canvas-pixels 64").canvas == Canvas("aspect", 64)


def test_no_flag_has_a_default_of_its_own() -> None:
    assert settings_by("") == SETTINGS


def test_every_format_offered_can_be_written() -> None:
    assert {f".{name}" for name in FORMATS} <= PHOTO_SUFFIXES


# Folder runs


def test_a_folder_with_bad_files_is_done_but_for_them(run: Run) -> None:
    folder_of_scans()
    whole = scan("whole.jpg", (400, 300)).read_bytes()
    Path("in/truncated.jpg").write_bytes(whole[: len(whole) // 2])
    Path("in/empty.png").touch()
    Path("in/text.png").write_text("not a photo")
    before = files("in")
    status, lines = run("in -o out")
    assert status == 1
    assert files("in") == before
    assert list(files("out")) == ["a10.png", "a2.jpg", "sub/b.tif"]
    errors = [line for line in lines if line.startswith("colorize: error: ")]
    assert [line.split()[2] for line in errors] == [
        "in/empty.png",
        "in/text.png",
        "in/truncated.jpg",
    ]
    assert lines[-1].startswith("3 colorized, 3 failed; ")

    made = files("out")
    status, lines = run("in -o out")
    assert status == 1
    assert lines[0].startswith("3 of 6 already there")
    assert files("out") == made


def test_what_is_done_is_made_anew_only_on_request(run: Run) -> None:
    folder_of_scans()
    Path("out").mkdir()
    Path("out/a2.jpg").write_bytes(b"an earlier result")
    assert run("in -o out")[0] == 0
    assert files("out")["a2.jpg"] == b"an earlier result"
    assert run("in -o out --overwrite")[0] == 0
    assert Image.open("out/a2.jpg").size == (40, 30)


def test_all_done_needs_no_model(run: Run) -> None:
    scan("a.png")
    scan("b.png")
    assert run("a.png -o b.png --bundle nowhere", "--")[0] == 0


def test_a_dry_run_lists_what_is_missing_and_writes_nothing(
    run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    folder_of_scans()
    scan("out/a2.jpg")
    before = files(".")
    model = ["--bundle", "nowhere"]
    assert main(["in", "-o", "out", "--dry-run", *model]) == 0
    printed = capsys.readouterr()
    assert printed.out.splitlines() == [
        "in/a10.png -> out/a10.png",
        "in/sub/b.tif -> out/sub/b.tif",
    ]
    assert printed.err.startswith("1 of 3 already there")
    assert files(".") == before


def test_quiet_is_silent_but_for_errors(run: Run) -> None:
    folder_of_scans()
    assert run("in -o out --quiet") == (0, [])
    assert run("in -o out --quiet") == (0, [])


# Stopping and starting again


def test_ctrl_c_ends_in_one_line_and_can_be_resumed(run: Run) -> None:
    many_scans((300, 200))
    status, lines = interrupted(run, "in -o out")
    assert status == 130
    assert lines[-1].startswith("colorize: interrupted")
    assert all(line.startswith("in/") for line in lines[:-1])
    resumed(run)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sent", "status"),
    [(signal.SIGTERM, 130), (signal.SIGHUP, 130), (signal.SIGKILL, -signal.SIGKILL)],
)
def test_a_killed_run_says_little_and_can_be_resumed(
    run: Run, bundle: Path, sent: signal.Signals, status: int
) -> None:
    many_scans((300, 200))
    command = ["-m", "colorflux_core.colorize", "in", "-o", "out", "--bundle", str(bundle)]
    with subprocess.Popen(
        [sys.executable, *command],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        wait_for_a_result()
        process.send_signal(sent)
        out, err = process.communicate()
    assert (process.returncode, out) == (status, "")
    # Nothing of what diffusers and transformers have to say.
    assert all(line.startswith(("in/", "colorize: interrupted")) for line in err.splitlines())
    if sent == signal.SIGHUP:
        return  # The rest is the same.
    resumed(run)


# Bad input: one line that says what and where, no result, no traceback


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ("", ["PHOTO_OR_FOLDER", "-o", "--help"]),
        ("a.png", ["-o"]),
        ("a.png -o b.png --colour", ["--colour"]),
        ("a.png -o b.png --step 3", ["--step"]),
        ("a.png -o b.png --steps many", ["--steps", "many"]),
        ("a.png -o b.png --steps 0", ["steps", "0", "1"]),
        ("a.png -o b.png --detail 1.5", ["detail", "1.5"]),
        ("a.png -o b.png --guidance nan", ["guidance", "nan"]),
        ("a.png -o b.png --seed -1", ["seed", "-1"]),
        ("a.png -o b.png --canvas 100x64", ["canvas", "100", "16"]),
        ("a.png -o b.png --canvas round", ["canvas", "round"]),
        ("a.png -o b.png --canvas-pixels 0", ["canvas", "0", "16"]),
        ("a.png -o b.png --dtype float8", ["--dtype", "float8"]),
        ("a.png -o b.png --device toaster", ["--device", "toaster", "cuda"]),
        ("a.png -o b.png --format gif", ["--format", "gif"]),
        ("a.png -o b.png --control-mode 3", ["control_mode", "3"]),
        ("a.png -o b.png --lora x", ["--bundle", "parts"]),
        ("a.png -o b.png --restore x", ["--sd-turbo"]),
        ("a.png -o b.png --sd-turbo x", ["--restore"]),
        ("a.png -o b.png --restore x --sd-turbo y --restore-tile 100", ["tile", "100", "64"]),
        (
            "a.png -o b.png --restore x.safetensors --sd-turbo y",
            ["x.safetensors", "does not exist"],
        ),
        ("nowhere.png -o b.png", ["nowhere.png", "does not exist"]),
        ("empty -o out", ["empty", "no photos"]),
        ("a.png -o b.png --reference nowhere.jpg", ["nowhere.jpg"]),
        ("a.png -o a.png", ["a.png", "overwritten"]),
        ("a.png -o a.png/b.png", ["a.png", "-o"]),
        ("a.png -o proc/new/b.png", ["proc/new", "-o"]),
    ],
)
def test_arguments_that_cannot_be_used(run: Run, arguments: str, named: list[str]) -> None:
    scan("a.png")
    Path("empty").mkdir()
    Path("proc").symlink_to("/proc")
    before = files("a.png"), files("empty")
    refused("colorize", run(arguments), *named)
    assert (files("a.png"), files("empty")) == before
    assert not Path("b.png").exists()


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ("--bundle nowhere", ["nowhere", "colorflux.json"]),
        ("--vae v --lora x", ["--transformer", "--image-encoder", "--redux", "--controlnet"]),
        ("--transformer t --vae v --image-encoder i --redux r --controlnet c", ["missing"]),
    ],
)
def test_models_that_are_not_there(run: Run, arguments: str, named: list[str]) -> None:
    scan("a.png")
    refused("colorize", run(f"a.png -o b.png {arguments}", "--"), *named)


def without_vae(folder: Path) -> str:
    shutil.rmtree(folder / "vae")
    return "vae"


def with_a_wrong_shape(folder: Path) -> str:
    file = folder / "image_embedder/diffusion_pytorch_model.safetensors"
    state = load_file(file)
    state["redux_up.weight"] = state["redux_up.weight"][:, :-1].contiguous()
    save_file(state, file)
    return "redux_up.weight"


def with_nan(folder: Path) -> str:
    file = folder / "transformer/diffusion_pytorch_model.safetensors"
    state = load_file(file)
    state["x_embedder.weight"][0, 0] = torch.nan
    save_file(state, file)
    return "NaN"


def from_the_future(folder: Path) -> str:
    file = folder / "colorflux.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "format_version": 99}))
    return "99"


@pytest.mark.parametrize("damage", [without_vae, with_a_wrong_shape, with_nan, from_the_future])
def test_damaged_bundles(run: Run, bundle: Path, damage: Callable[[Path], str]) -> None:
    scan("a.png")
    shutil.copytree(bundle, "damaged")
    named = damage(Path("damaged"))
    refused("colorize", run("a.png -o b.png --bundle damaged", "--"), "damaged", named)
    assert not Path("b.png").exists()


@pytest.mark.parametrize(
    ("content", "named"),
    [(b"", "empty file"), (b"text", "not a photo"), (None, "damaged")],
    ids=["empty", "text", "truncated"],
)
def test_one_bad_photo(run: Run, content: bytes | None, named: str) -> None:
    if content is None:
        content = scan("whole.png", (400, 300)).read_bytes()[:300]
    Path("a.png").write_bytes(content)
    refused("colorize", run("a.png -o b.png"), "a.png", named, status=1)
    assert not Path("b.png").exists()


def test_a_scan_beyond_the_limit(run: Run) -> None:
    scan("a.png")
    result = run("a.png -o b.png --max-megapixels 0.001")
    refused("colorize", result, "a.png", "45x30", "--max-megapixels", status=1)
    assert run("a.png -o b.png --max-megapixels 0.002")[0] == 0


def test_a_full_disk_leaves_nothing_half_written(run: Run) -> None:
    scan("in/a.png", (300, 200))
    scan("in/b.png", (20, 20))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        status, lines = run("in -o out")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert status == 1
    (error,) = [line for line in lines if "error" in line]
    assert error.startswith("colorize: error: out/a.png cannot be written (File too large)")
    assert list(files("out")) == ["b.png"]


# Without torch


def python(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("arguments", "status"),
    [("--help", 0), ("a.png -o b.png --colour", 2), ("a.png -o b.png --lora x", 2)],
)
def test_help_and_mistakes_do_not_wait_for_torch(arguments: str, status: int) -> None:
    script = f"""
import sys
from colorflux_core.colorize import main
try:
    status = main({arguments.split()!r})
except SystemExit as exit:
    status = exit.code
print(status, "torch" in sys.modules, "PIL" in sys.modules)
"""
    result = python("-c", script)
    assert result.stdout.splitlines()[-1] == f"{status} False False"


def test_without_torch_the_way_to_it_is_told() -> None:
    script = """
import sys
from colorflux_core.colorize import main
sys.modules["torch"] = None
sys.exit(main(["a.png", "-o", "b.png"]))
"""
    result = python("-c", script)
    assert result.returncode == 2
    (line,) = result.stderr.splitlines()
    assert "torch is not installed" in line
