"""The command line of S3Diff, run as its users run it, on a tiny SD-Turbo."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image
from safetensors.torch import save_file

from colorflux_core.photos.photo import load_photo, save_photo
from colorflux_core.restore import main, options, parser
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
)
from tests.s3diff import models as tiny

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("s3diff")
    tiny.save_sd_turbo(folder / "sd-turbo")
    tiny.save_converted(folder)
    return folder


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], model: Path) -> Run:
    """With the tiny model unless "--" says that the command names one itself."""

    def run(command: str, *more: str) -> Result:
        files = ["--s3diff", str(model / "s3diff.safetensors")]
        files += ["--sd-turbo", str(model / "sd-turbo")]
        words = [*command.split(), *(word for word in more if word != "--")]
        return result_of(main, [*words, *([] if "--" in more else files)], capsys)

    return run


# What comes out


def test_a_photo_comes_out_as_the_library_makes_it(run: Run, model: Path) -> None:
    photo = load_photo(scan("a.png", (300, 64), "RGB"))
    flags = "--scale 1.5 --tile 256 --color-fix adain --seed 3 --guidance 2"
    status, (line,) = run(f"a.png -o out/deep/b.png {flags}")
    assert status == 0
    assert line.startswith("a.png -> out/deep/b.png: 450x96, ")
    s3diff = load_s3diff(model / "s3diff.safetensors", model / "sd-turbo")
    how = Restoration(scale=1.5, tile=256, color_fix="adain", seed=3, guidance=2)
    expected = restore(s3diff, photo.pixels[None], how)[0]
    assert torch.equal(load_photo("out/deep/b.png").pixels, (expected * 255).round().byte())


def toned(path: str) -> None:
    """A sepia picture."""
    ramp = np.asarray(Image.open(scan("ramp.png", (64, 48))))
    Image.fromarray((ramp[..., None] * np.array([1.0, 0.8, 0.5])).astype(np.uint8)).save(path)


@pytest.mark.parametrize(
    ("flags", "gray_ones"),
    [
        ("", ["gray", "stored_in_color"]),
        ("--gray", ["color", "gray", "sepia", "stored_in_color"]),
        ("--no-gray", []),
    ],
)
def test_what_looks_gray_stays_gray(run: Run, flags: str, gray_ones: list[str]) -> None:
    scan("in/color.png", (64, 48), "RGB")
    Image.open(scan("in/gray.png", (64, 48))).convert("RGB").save("in/stored_in_color.png")
    toned("in/sepia.png")
    assert run(f"in -o out --color-fix none {flags}")[0] == 0
    rgb = {path.stem: load_photo(path).pixels for path in sorted(Path("out").iterdir())}
    assert len(rgb) == 4
    assert [name for name, it in rgb.items() if it[0].equal(it[1]) and it[0].equal(it[2])] == (
        gray_ones
    )


def test_a_scan_keeps_what_its_file_knew(run: Run) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Artist] = "grandfather"
    Path("in").mkdir()
    picture = Image.open(scan("a.png", (60, 40), "RGB"))
    picture.save("in/a.jpg", exif=exif, dpi=(300, 300))
    ramp = torch.linspace(0, 1, 60).expand(3, 40, 60)
    sixteen_bits = torch.zeros(3, 40, 60, dtype=torch.uint16)
    save_photo("in/b.tif", ramp, like=replace(load_photo("in/a.jpg"), pixels=sixteen_bits))
    assert run("in -o out --scale 2")[0] == 0
    with Image.open("out/a.jpg") as after:
        assert (after.size, after.format) == ((120, 80), "JPEG")
        assert after.getexif()[ExifTags.Base.Artist] == "grandfather"
        assert after.info["dpi"] == (600, 600)
    deep = load_photo("out/b.tif")
    assert (deep.size, deep.bit_depth, deep.dpi) == ((80, 120), 16, (600, 600))
    assert len(deep.pixels.to(torch.int32).unique()) > 256


def test_half_precision_is_close(run: Run) -> None:
    scan("a.png")
    assert run("a.png -o whole.png")[0] == 0
    assert run("a.png -o half.png --dtype bfloat16")[0] == 0
    whole, half = (load_photo(name).rgb for name in ("whole.png", "half.png"))
    assert 0 < (half - whole).abs().mean() < 0.05


# Flags and options

FLAGS: dict[str, tuple[str, Any]] = {
    "scale": ("--scale 4", 4.0),
    "tile": ("--tile 512", 512),
    "guidance": ("--guidance 0", 0.0),
    "color_fix": ("--color-fix none", "none"),
    "gray": ("--gray", True),
    "seed": ("--seed 7", 7),
}


def options_by(flags: str) -> Restoration:
    given = ["a.png", "-o", "b.png", "--s3diff", "s", "--sd-turbo", "t", *flags.split()]
    return options(parser().parse_args(given))


def test_every_option_has_a_flag_that_sets_it_alone() -> None:
    assert FLAGS.keys() == {field.name for field in fields(Restoration)}
    for name, (flag, value) in FLAGS.items():
        assert vars(options_by(flag)) == {**vars(Restoration()), name: value}
    assert options_by("--mode") == Restoration(seed=None)


def test_no_flag_has_a_default_of_its_own() -> None:
    assert options_by("") == Restoration()


# Folder runs


def test_a_folder_with_a_bad_file_is_done_but_for_it(run: Run) -> None:
    folder_of_scans()
    Path("in/text.png").write_text("not a photo")
    before = files("in")
    status, lines = run("in -o out")
    assert status == 1
    assert files("in") == before
    made = files("out")
    assert list(made) == ["a10.png", "a2.jpg", "sub/b.tif"]
    assert lines[-2].startswith("restore: error: in/text.png")
    assert lines[-1].startswith("3 restored, 1 failed; ")

    status, lines = run("in -o out")
    assert (status, lines[0][:20]) == (1, "3 of 4 already there")
    assert files("out") == made
    assert run("in -o out --overwrite --seed 1")[0] == 1
    again = files("out")
    assert again.keys() == made.keys()
    assert all(again[name] != made[name] for name in made)


def test_a_dry_run_needs_no_model(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    folder_of_scans()
    scan("out/a2.jpg")
    before = files(".")
    nowhere = ["--s3diff", "nowhere", "--sd-turbo", "nowhere"]
    assert main(["in", "-o", "out", "--dry-run", *nowhere]) == 0
    printed = capsys.readouterr()
    assert printed.out.splitlines() == [
        "in/a10.png -> out/a10.png",
        "in/sub/b.tif -> out/sub/b.tif",
    ]
    assert files(".") == before


def test_quiet_is_silent(run: Run) -> None:
    folder_of_scans()
    assert run("in -o out --quiet") == (0, [])


def test_ctrl_c_ends_in_one_line_and_can_be_resumed(run: Run) -> None:
    many_scans((60, 40))
    status, lines = interrupted(run, "in -o out")
    assert status == 130
    assert lines[-1].startswith("restore: interrupted")
    assert all(line.startswith("in/") for line in lines[:-1])
    resumed(run)


def test_tiles_are_counted_on_a_terminal(
    run: Run, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    scan("a.png", (300, 64))
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    _, lines = run("a.png -o b.png --tile 256")
    told = "".join(lines)
    steps = [told.find(f"tile {done} of ") for done in (1, 2, 6)]
    assert -1 not in steps
    assert steps == sorted(steps)


# Bad input: one line that says what and where, no result, no traceback


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        ("--scale 0.5", ["scale", "0.5", "1 to 4"]),
        ("--scale nan", ["scale", "nan"]),
        ("--scale large", ["--scale", "large"]),
        ("--tile 100", ["tile", "100", "64"]),
        ("--tile 192", ["tile", "192", "256"]),
        ("--guidance nan", ["guidance", "nan"]),
        ("--seed -1", ["seed", "-1"]),
        ("--color-fix sepia", ["--color-fix", "wavelet"]),
        ("--device toaster", ["--device", "toaster"]),
    ],
)
def test_values_are_checked_before_the_model(run: Run, flags: str, named: list[str]) -> None:
    scan("a.png")
    nowhere = "--s3diff nowhere --sd-turbo nowhere"
    refused("restore", run(f"a.png -o b.png {nowhere} {flags}", "--"), *named)
    assert not Path("b.png").exists()


def test_models_that_are_not_there(run: Run, model: Path) -> None:
    scan("a.png")
    s3diff, sd_turbo = model / "s3diff.safetensors", model / "sd-turbo"
    save_file({"a": torch.zeros(1)}, "other.safetensors")
    for flags, named in (
        ("", ["--s3diff", "--sd-turbo"]),
        (f"--s3diff {s3diff}", ["--sd-turbo"]),
        (f"--s3diff nowhere --sd-turbo {sd_turbo}", ["nowhere", "does not exist"]),
        (f"--s3diff other.safetensors --sd-turbo {sd_turbo}", ["other.safetensors", "convert"]),
        (f"--s3diff {model / 's3diff.pkl'} --sd-turbo {sd_turbo}", ["s3diff.pkl", "convert"]),
        (f"--s3diff {s3diff} --sd-turbo nowhere", ["nowhere"]),
        (f"--s3diff {s3diff} --sd-turbo other.safetensors", ["other.safetensors"]),
    ):
        refused("restore", run(f"a.png -o b.png {flags}", "--"), *named)
        assert not Path("b.png").exists()


def test_a_prompt_of_ones_own_takes_a_tokenizer(run: Run) -> None:
    scan("a.png")
    refused("restore", run("a.png -o b.png --positive portrait"), "tokenizer")
    refused("restore", run("a.png -o b.png --negative", ""), "tokenizer")


@pytest.mark.parametrize(
    ("arguments", "status"), [("--help", 0), ("a.png -o b.png", 2), ("a.png --tile x", 2)]
)
def test_help_and_mistakes_do_not_wait_for_torch(arguments: str, status: int) -> None:
    script = f"""
import sys
from colorflux_core.restore import main
try:
    status = main({arguments.split()!r})
except SystemExit as exit:
    status = exit.code
print(status, "torch" in sys.modules)
"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    ran = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True
    )
    assert ran.stdout.splitlines()[-1] == f"{status} False"
