"""Flags that save memory leave the numbers as they are, or near them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from colorflux_core.errors import ColorFluxError
from tests.training.runs import (
    PAPER_STAGES,
    Trained,
    fixed_batch,
    metrics,
    saved_state,
    trained_stage,
)
from tests.training.tiny_training import STAGES, Setup

HALF = {"precision": "bf16", "frozen": "bfloat16"}
NEAR = 0.02
"""Of errors and losses in bfloat16, which has 8 significant bits, beside float32."""


@pytest.mark.parametrize("name", [name for name in STAGES if name != "vae"])
def test_in_half_precision_it_learns_alike(
    setup: Setup, trained: Callable[[str], Trained], tmp_path: Path, name: str
) -> None:
    """What is frozen is held in half the bits, what learns and its optimizer in all of them."""
    run = trained_stage(setup, name, tmp_path, steps=3, **HALF)
    errors = ("flow_loss", "distillation_loss", "winner_error", "loser_error")
    for half, whole in zip(metrics(tmp_path), metrics(trained(name).output), strict=False):
        compared = [error for error in errors if error in half]
        assert compared
        for error in compared:
            assert half[error] == pytest.approx(whole[error], rel=NEAR)
            assert half[error] != whole[error]  # It does compute in half precision.
    held = {(p.requires_grad, p.dtype) for m in modules(run.stage) for p in m.parameters()}
    assert held <= {(True, torch.float32), (False, torch.bfloat16)}
    assert ((False, torch.bfloat16) in held) == (name != "flux")  # All of it learns.
    state = saved_state(tmp_path)
    assert {weight.dtype for weight in state["weights"].values()} == {torch.float32}
    moments = [slot["exp_avg"] for slot in state["optimizer"]["state"].values()]
    assert {moment.dtype for moment in moments} == {torch.float32}


def modules(stage: Any) -> list[torch.nn.Module]:
    return [value for value in vars(stage).values() if isinstance(value, torch.nn.Module)]


def test_fresh_losers_are_encoded_in_half_precision_too(setup: Setup, tmp_path: Path) -> None:
    trained_stage(setup, "pro_dpo", tmp_path / "half", steps=2, pairs=0, **HALF)
    trained_stage(setup, "pro_dpo", tmp_path / "whole", steps=2, pairs=0)
    half, whole = metrics(tmp_path / "half"), metrics(tmp_path / "whole")
    for error in ("winner_error", "loser_error"):
        assert [line[error] for line in half] == pytest.approx(
            [line[error] for line in whole], rel=NEAR
        )


def test_the_autoencoder_learns_in_half_precision(
    setup: Setup, trained: Callable[[str], Trained], tmp_path: Path
) -> None:
    trained_stage(setup, "vae", tmp_path, steps=2, precision="bf16")
    for half, whole in zip(metrics(tmp_path), metrics(trained("vae").output), strict=False):
        assert half["loss"] == pytest.approx(whole["loss"], rel=NEAR)
        assert half["loss"] != whole["loss"]


@pytest.mark.parametrize("frozen", ["bfloat16", "float16", "fp8", "nf4"])
def test_halves_that_nothing_casts_are_refused(setup: Setup, tmp_path: Path, frozen: str) -> None:
    with pytest.raises(ColorFluxError, match=f"--frozen {frozen} needs --precision bf16 or fp16"):
        setup.config("structure", tmp_path, frozen=frozen, precision="no")


SWITCHES: dict[str, dict[str, Any]] = {
    **{name: {} for name in PAPER_STAGES},
    "redux+siglip": {"train": "redux+siglip"},
    "redux+controlnet": {"train": "redux+controlnet", "double_blocks": 1, "single_blocks": 2},
}


@pytest.mark.parametrize("switch", SWITCHES)
def test_checkpointed_activations_give_the_same_gradients(
    setup: Setup, tmp_path: Path, switch: str
) -> None:
    name = switch if switch in PAPER_STAGES else "basic_color"
    losses, gradients = [], []
    for checkpointing in (False, True):
        config = setup.config(
            name, tmp_path, gradient_checkpointing=checkpointing, **SWITCHES[switch]
        )
        stage: Any
        stage, rows, _ = setup.training(name, config)
        moved(stage.trainable)
        kept: list[Tensor] = []
        with torch.autograd.graph.saved_tensors_hooks(partial(keep, kept), same):
            loss, _ = stage.loss(fixed_batch(stage, rows))
        loss.backward()
        losses.append((loss.item(), len(kept)))
        learning = [p for p in stage.trainable.parameters() if p.requires_grad]
        gradients.append([p.grad for p in learning])
    (whole, many), (again, few) = losses
    assert whole == again
    assert few < many / 2
    assert any(gradient.any() for gradient in gradients[0])
    assert all(map(torch.equal, *gradients))


def keep(kept: list[Tensor], tensor: Tensor) -> Tensor:
    kept.append(tensor)
    return tensor


def same(tensor: Tensor) -> Tensor:
    return tensor


@torch.no_grad()
def moved(trainable: torch.nn.Module) -> None:
    """Away from the zeros that it starts with, behind which there are no gradients."""
    random = torch.Generator().manual_seed(0)
    for parameter in trainable.parameters():
        if parameter.requires_grad:
            parameter.add_(torch.randn(parameter.shape, generator=random), alpha=0.01)
