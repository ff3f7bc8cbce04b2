"""The contact sheet of a run grows with it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from signal import SIGINT, raise_signal

import pytest
import torch
from PIL import Image

from tests.training.runs import Killed, Trained, contents, during_step, kill, trained_stage
from tests.training.tiny_training import CANVAS, STAGES, VALIDATION, Setup
from training.run.loop import train
from training.run.sheets import LABEL, MAX_SIDE, append_to_sheet, truncate_sheets
from training.stage import Sheet

ROWS = dict.fromkeys(STAGES, (1, 1)) | {"structure": (1, 2), "pro_dpo": (3, 1)}
"""Rows of given pictures above, rows drawn in each sample step."""


@pytest.mark.parametrize("name", STAGES)
def test_each_stage_draws_its_samples(trained: Callable[[str], Trained], name: str) -> None:
    output = trained(name).output
    given, drawn = ROWS[name]
    with Image.open(output / "samples.jpg") as sheet:
        assert sheet.size == (VALIDATION * CANVAS, (given + drawn) * CANVAS + LABEL)
    assert [strip.name for strip in (output / "samples").iterdir()] == ["step-0000010.png"]


def strips(output: Path) -> list[int]:
    """The steps in the folder, all of which are on the sheet as well."""
    steps = sorted(
        int(strip.stem.removeprefix("step-")) for strip in (output / "samples").iterdir()
    )
    with Image.open(output / "samples.jpg") as sheet:
        assert sheet.height == CANVAS + len(steps) * (CANVAS + LABEL)
    return steps


def test_the_sheet_has_a_strip_for_each_sample_step(setup: Setup, tmp_path: Path) -> None:
    options = {"steps": 5, "sample_every": 2, "checkpoint_every": 3}
    whole, parted = tmp_path / "whole", tmp_path / "parted"
    trained_stage(setup, "basic_color", whole, **options)
    assert strips(whole) == [2, 4, 5]

    config = setup.config("basic_color", parted, **options)
    with pytest.raises(Killed):
        train(during_step(setup.training("basic_color", config), 4, kill), config)
    assert strips(parted) == [2, 4]  # The checkpoint is of step 3.
    trained_stage(setup, "basic_color", parted, resume=True, **options)
    assert strips(parted) == [2, 4, 5]
    assert contents(parted / "samples") == contents(whole / "samples")
    assert (parted / "samples.jpg").read_bytes() == (whole / "samples.jpg").read_bytes()


def test_a_run_that_is_stopped_at_a_sample_step_has_its_strip(setup: Setup, tmp_path: Path) -> None:
    config = setup.config("basic_color", tmp_path, steps=3, sample_every=2)
    press = partial(raise_signal, SIGINT)
    with pytest.raises(KeyboardInterrupt):
        train(during_step(setup.training("basic_color", config), 1, press), config)
    trained_stage(setup, "basic_color", tmp_path, steps=3, sample_every=2, resume=True)
    assert strips(tmp_path) == [2, 3]


def test_pictures_are_where_they_belong(tmp_path: Path) -> None:
    """Given ones above once, then each step's under its label, in the order of the steps."""
    flat = torch.ones(2, 3, 16, 16)
    for step in (10, 9, 100):
        append_to_sheet(tmp_path, Sheet([flat * 0.25], [flat * step / 100]), step)
    with Image.open(tmp_path / "samples.jpg") as sheet:
        band = 16 + LABEL
        levels = [sheet.getpixel((20, y)) for y in (8, *(band * n + 8 for n in (1, 2, 3)))]
    assert [level[0] for level in levels if isinstance(level, tuple)] == pytest.approx(
        [64, 23, 26, 255], abs=3
    )
    truncate_sheets(tmp_path, 10)
    assert sorted(strip.name for strip in (tmp_path / "samples").iterdir()) == [
        "step-0000009.png",
        "step-0000010.png",
    ]


def test_a_long_sheet_is_made_smaller_until_it_fits(tmp_path: Path) -> None:
    tall = torch.zeros(1, 3, 3000, 300)
    for step in range(3):
        append_to_sheet(tmp_path, Sheet([tall], [tall]), step)
    with Image.open(tmp_path / "samples.jpg") as sheet:
        assert sheet.height == pytest.approx(MAX_SIDE, abs=4)
        assert sheet.height / sheet.width == pytest.approx((4 * 3000 + 3 * LABEL) / 300, rel=0.01)
