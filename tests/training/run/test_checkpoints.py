"""Checkpoints are whole or not there; what may change between two runs, and what may not."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from colorflux_core.cli.flags import flag_of
from colorflux_core.errors import ColorFluxError
from tests.training.runs import (
    Killed,
    contents,
    files_up_to,
    saved_state,
    saved_steps,
    trained_stage,
)
from tests.training.smallest import PHOTOS, line_run, line_training
from tests.training.tiny_training import Setup
from training.data.rows import Rows
from training.run.checkpoint import checkpoints, load_checkpoint, save_checkpoint
from training.stage import Training


def state(step: int) -> dict[str, Any]:
    return {"step": step, "weights": {"w": torch.full((100, 100), float(step))}}


def flipped(content: bytes) -> bytes:
    """One byte among the weights is another one."""
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 0xFF]) + content[middle + 1 :]


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "cut in half": lambda content: content[: len(content) // 2],
    "empty": lambda content: b"",
    "zeros": lambda content: bytes(len(content)),
    "something else": lambda content: b"epoch,loss\n" * 100,
    "one byte": flipped,
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_the_newest_whole_one_is_taken(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: str
) -> None:
    for step in (2, 4):
        save_checkpoint(tmp_path, step, state(step), keep=2)
    newest, older = checkpoints(tmp_path)
    newest.write_bytes(DAMAGES[damage](newest.read_bytes()))
    with caplog.at_level(logging.WARNING):
        taken = load_checkpoint(tmp_path)
    assert taken and taken["step"] == 2
    assert torch.equal(taken["weights"]["w"], state(2)["weights"]["w"])
    assert f"{newest} is damaged" in caplog.text

    older.write_bytes(DAMAGES[damage](older.read_bytes()))
    with pytest.raises(ColorFluxError, match=f"no checkpoint in {tmp_path} can be read"):
        load_checkpoint(tmp_path)


def test_where_there_is_none_there_is_none(tmp_path: Path) -> None:
    assert load_checkpoint(tmp_path) is None


@pytest.mark.parametrize("keep", [1, 2, 3])
def test_the_newest_are_kept(tmp_path: Path, keep: int) -> None:
    line_run(tmp_path, steps=5, checkpoint_every=1, keep_checkpoints=keep)
    assert saved_steps(tmp_path) == [5, 4, 3][:keep]


def test_a_damaged_one_does_not_displace_a_good_one(tmp_path: Path) -> None:
    for step in (2, 4):
        save_checkpoint(tmp_path, step, state(step), keep=2)
    checkpoints(tmp_path)[0].write_bytes(b"")
    save_checkpoint(tmp_path, 3, state(3), keep=1)
    assert saved_steps(tmp_path) == [3]


class Bomb:
    def __reduce__(self) -> str:
        raise Killed


def test_one_that_is_interrupted_leaves_the_old_one(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, 2, state(2), keep=1)
    with pytest.raises(Killed):
        save_checkpoint(tmp_path, 4, state(4) | {"bomb": Bomb()}, keep=1)
    assert saved_steps(tmp_path) == [2] and saved_state(tmp_path)["step"] == 2
    assert len(contents(tmp_path)) == 1


def test_the_file_that_a_killed_save_leaves_is_deleted_by_the_next(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, 2, state(2), keep=1)
    (tmp_path / "checkpoints" / ".step-0000004.pt.01234567.part").write_bytes(b"half")
    assert saved_steps(tmp_path) == [2] and saved_state(tmp_path)["step"] == 2
    save_checkpoint(tmp_path, 4, state(4), keep=1)
    assert saved_steps(tmp_path) == [4] and len(contents(tmp_path)) == 1


@pytest.mark.parametrize("room", [0, 1000, 30_000])
def test_a_full_disk_leaves_the_old_one(tmp_path: Path, room: int) -> None:
    save_checkpoint(tmp_path, 2, state(2), keep=1)
    before = contents(tmp_path)
    with files_up_to(room), pytest.raises(ColorFluxError) as refusal:
        save_checkpoint(tmp_path, 4, state(4), keep=1)
    said = str(refusal.value)
    path = tmp_path / "checkpoints" / "step-0000004.pt"
    assert said.startswith(f"{path} cannot be written (")
    assert said.endswith("): make room, then repeat the command with --resume.")
    assert "\n" not in said
    assert contents(tmp_path) == before


def test_what_cannot_fit_is_not_begun(tmp_path: Path) -> None:
    """Four terabytes."""
    large = {"weights": torch.empty(2**40, device="meta"), "step": 4}
    with pytest.raises(ColorFluxError, match=r"it needs 4096.00 GiB, .* GiB are free"):
        save_checkpoint(tmp_path, 4, large, keep=1)
    assert not contents(tmp_path)


def test_a_full_disk_ends_a_run_that_then_goes_on(tmp_path: Path) -> None:
    line_run(tmp_path / "whole", steps=4, checkpoint_every=2)
    line_run(tmp_path / "run", steps=2, checkpoint_every=2)
    size = checkpoints(tmp_path / "run")[0].stat().st_size
    with (
        files_up_to(size - 1),
        pytest.raises(ColorFluxError, match=r"step-0000004\.pt cannot be written"),
    ):
        line_run(tmp_path / "run", steps=4, checkpoint_every=2, resume=True)
    assert saved_steps(tmp_path / "run") == [2]
    line_run(tmp_path / "run", steps=4, checkpoint_every=2, resume=True)
    after = [saved_state(tmp_path / name)["weights"] for name in ("whole", "run")]
    assert all(torch.equal(after[0][key], after[1][key]) for key in after[0])


def other_photos() -> Training:
    stage, rows, samples = line_training()
    photos = [*PHOTOS[:-1], Path("another.png")]
    return Training(stage, Rows(photos, rows.columns), samples)


@pytest.mark.parametrize(
    ("key", "changes"),
    [
        ("learning_rate", {"learning_rate": 0.2}),
        ("batch_size", {"batch_size": 2}),
        ("seed", {"seed": 1}),
        ("schedule", {"schedule": "cosine"}),
        ("ema_decay", {"ema_decay": 0.9}),
        ("canvas", {"canvas": 64}),
        ("max_grad_norm", {"max_grad_norm": 2}),
    ],
)
def test_going_on_with_another_setting_is_refused(
    tmp_path: Path, key: str, changes: dict[str, Any]
) -> None:
    line_run(tmp_path)
    before = contents(tmp_path)
    with pytest.raises(ColorFluxError) as refusal:
        line_run(tmp_path, steps=6, resume=True, **changes)
    assert str(refusal.value).startswith(
        f"{flag_of(key)} is {changes[key]}, but the run to resume has"
    )
    assert contents(tmp_path) == before


def test_going_on_with_other_photos_is_refused(tmp_path: Path) -> None:
    line_run(tmp_path)
    with pytest.raises(ColorFluxError, match="--manifest"):
        line_run(tmp_path, other_photos(), steps=6, resume=True)


@pytest.mark.parametrize(
    ("name", "key", "changes"),
    [
        ("structure", "double_blocks", {"double_blocks": 2}),
        ("basic_color", "alpha", {"alpha": 0.2}),
        ("pro_dpo", "rank", {"rank": 8}),
        ("pro_dpo", "fading_low", {"fading_low": 0.75}),
    ],
)
def test_going_on_with_another_setting_of_a_stage_is_refused(
    setup: Setup, tmp_path: Path, name: str, key: str, changes: dict[str, Any]
) -> None:
    trained_stage(setup, name, tmp_path, steps=1)
    with pytest.raises(
        ColorFluxError, match=f"{flag_of(key)} is {changes[key]}, but the run to resume"
    ):
        trained_stage(setup, name, tmp_path, steps=2, resume=True, **changes)


@pytest.mark.parametrize(
    "changes",
    [
        {"micro_batch": 1},
        {"workers": 1},
        {"checkpoint_every": 3},
        {"keep_checkpoints": 5},
        {"max_loss_ratio": 0},
        {"cache": Path("elsewhere")},
    ],
)
def test_what_only_the_machine_cares_for_may_change(
    tmp_path: Path, changes: dict[str, Any]
) -> None:
    line_run(tmp_path / "whole", steps=6)
    line_run(tmp_path / "run", steps=3)
    line_run(tmp_path / "run", steps=6, resume=True, **changes)
    after = [saved_state(tmp_path / name)["weights"] for name in ("whole", "run")]
    for key, weight in after[0].items():
        torch.testing.assert_close(after[1][key], weight)


def test_a_run_may_move(tmp_path: Path) -> None:
    line_run(tmp_path / "here", steps=3)
    (tmp_path / "here").rename(tmp_path / "there")
    line_run(tmp_path / "there", steps=6, resume=True)
    assert saved_steps(tmp_path / "there") == [6, 3]


def test_rows_are_told_apart_by_their_order_too(tmp_path: Path) -> None:
    """The order of the manifest decides which photo a step trains on."""
    line_run(tmp_path)
    stage, rows, samples = line_training()
    turned = Training(stage, Rows(PHOTOS[::-1], rows.columns), samples)
    with pytest.raises(ColorFluxError, match="--manifest"):
        line_run(tmp_path, turned, steps=6, resume=True)
