"""Each stage's loss against the paper's equation, written out with diffusers' own classes."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from colorflux_core.model.lora import reference_policy
from tests.training.runs import Trained, fixed_batch
from tests.training.tiny_training import CANVAS, Setup


def noisy(x_0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
    return (1 - t[:, None, None]) * x_0 + t[:, None, None] * noise


def predicted(
    transformer: nn.Module,
    controlnet: nn.Module,
    x_t: Tensor,
    t: Tensor,
    c_v: Tensor,
    condition: Tensor,
) -> Tensor:
    """The velocity with two zero text tokens before the visual prompt."""
    count, side = len(x_t), CANVAS // 16
    rows, columns = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    common = {
        "hidden_states": x_t,
        "timestep": t,
        "guidance": torch.full((count,), 3.5),
        "encoder_hidden_states": torch.cat([torch.zeros(count, 2, c_v.shape[-1]), c_v], dim=1),
        "pooled_projections": torch.zeros(count, 16),
        "txt_ids": torch.zeros(2 + c_v.shape[1], 3),
        "img_ids": torch.stack([torch.zeros(side, side), rows, columns], dim=-1).view(-1, 3),
    }
    double, single = controlnet(**common, controlnet_cond=condition, return_dict=False)
    return transformer(
        **common, controlnet_block_samples=double, controlnet_single_block_samples=single
    ).sample


@torch.no_grad()
def test_the_loss_of_structure_is_eq_2(trained: Callable[[str], Trained]) -> None:
    run = trained("structure")
    batch = fixed_batch(run.stage, run.rows)
    x_0, noise, t = batch["latents"], batch["noise"], batch["t"]
    c_v = run.stage.redux(batch["color_tokens"].float()).image_embeds
    parts = run.stage.transformer, run.stage.trainable
    v = predicted(*parts, noisy(x_0, noise, t), t, c_v, batch["gray_latents"])
    error = (noise - x_0 - v).square().mean(dim=(1, 2))
    loss, logged = run.stage.loss(batch)
    torch.testing.assert_close(loss, error.mean())
    assert logged.keys() == {"flow_loss"}
    torch.testing.assert_close(logged["flow_loss"], error)


@torch.no_grad()
@pytest.mark.parametrize("terms", ["both", "flow", "distill"])
def test_the_loss_of_basic_color_is_eq_6(
    setup: Setup, trained: Callable[[str], Trained], tmp_path: Path, terms: str
) -> None:
    stage = trained("basic_color").stage
    other = setup.training("basic_color", setup.config("basic_color", tmp_path, loss=terms)).stage
    other.trainable.load_state_dict(stage.trainable.state_dict())
    batch = fixed_batch(stage, trained("basic_color").rows)
    x_0, noise, t = batch["latents"], batch["noise"], batch["t"]
    phi = stage.models["image_embedder"](batch["gray_input"].float()).image_embeds
    phi_color = stage.pretrained(batch["color_tokens"].float()).image_embeds
    parts = stage.transformer, stage.controlnet
    v = predicted(*parts, noisy(x_0, noise, t), t, phi, batch["gray_latents"])
    flow = (noise - x_0 - v).square().mean(dim=(1, 2))
    distill = (phi - phi_color).square().mean(dim=(1, 2))
    loss, logged = other.loss(batch)
    expected = {"both": flow + 0.1 * distill, "flow": flow, "distill": distill}[terms]
    torch.testing.assert_close(loss, expected.mean())
    torch.testing.assert_close(logged["distillation_loss"], distill)
    assert ("flow_loss" in logged) == (terms != "distill")


@torch.no_grad()
@pytest.mark.parametrize("schedule", ["constant", "time"])
def test_the_loss_of_pro_dpo_is_eq_4(setup: Setup, tmp_path: Path, schedule: str) -> None:
    config = setup.config("pro_dpo", tmp_path, beta_schedule=schedule)
    stage: Any
    stage, rows, _ = setup.training("pro_dpo", config)
    random = torch.Generator().manual_seed(5)
    for parameter in stage.trainable.parameters():
        if parameter.requires_grad:
            parameter.normal_(std=0.5, generator=random)
    batch = fixed_batch(stage, rows)
    noise, t = batch["noise"], batch["t"]
    c_v = stage.redux(batch["gray_tokens"].float()).image_embeds
    parts = stage.trainable, stage.controlnet

    def error(x_0: Tensor) -> Tensor:
        v = predicted(*parts, noisy(x_0, noise, t), t, c_v, batch["gray_latents"])
        return (noise - x_0 - v).square().mean(dim=(1, 2))

    winner, loser = error(batch["winner"]), error(batch["loser"])
    with reference_policy(stage.trainable):
        reference = error(batch["winner"]) - error(batch["loser"])
    margin = reference - (winner - loser)
    beta = 1000 * ((1 - t) ** 2 if schedule == "time" else torch.ones_like(t))
    logit = beta / 2 * margin
    loss, logged = stage.loss(batch)
    assert logit.abs().max() > 1
    torch.testing.assert_close(loss, -logit.sigmoid().log().mean(), rtol=1e-4, atol=2e-3)
    assert logged.keys() == {
        "dpo_loss",
        "implicit_accuracy",
        "margin",
        "logit",
        "winner_error",
        "loser_error",
    }
    torch.testing.assert_close(logged["logit"], logit, rtol=1e-4, atol=2e-3)
    torch.testing.assert_close(logged["margin"], margin, rtol=1e-4, atol=2e-6)
    torch.testing.assert_close(logged["winner_error"], winner)
    torch.testing.assert_close(logged["loser_error"], loser)
    assert logged["dpo_loss"] == loss
    assert logged["implicit_accuracy"] == (logit > 0).float().mean()


@pytest.mark.parametrize("pairs", [0, 2])
@pytest.mark.parametrize("schedule", ["constant", "time"])
def test_pro_dpo_starts_at_ln_2(setup: Setup, tmp_path: Path, schedule: str, pairs: int) -> None:
    config = setup.config("pro_dpo", tmp_path, beta_schedule=schedule, pairs=pairs)
    stage, rows, _ = setup.training("pro_dpo", config)
    loss, logged = stage.loss(fixed_batch(stage, rows))
    assert loss.item() == pytest.approx(math.log(2), abs=1e-6)
    assert logged["implicit_accuracy"] == 0.5
    assert not logged["logit"].any()


def test_sft_is_eq_2_on_the_winner(setup: Setup, tmp_path: Path) -> None:
    """As Pro-DPO logs it, before the policy has moved."""
    dpo, rows, _ = setup.training("pro_dpo", setup.config("pro_dpo", tmp_path))
    sft = setup.training("pro_dpo", setup.config("pro_dpo", tmp_path, loss="sft")).stage
    batch = fixed_batch(dpo, rows)
    loss, logged = sft.loss(batch)
    winner_error = dpo.loss(batch)[1]["winner_error"]
    torch.testing.assert_close(loss, winner_error.mean())
    torch.testing.assert_close(logged, {"flow_loss": winner_error})
    loss.backward()
    assert all((p.grad is not None) == p.requires_grad for p in sft.trainable.parameters())
