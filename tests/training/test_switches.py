"""The stages' switches: ablations, and what they may start from."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import FluxControlNetModel
from diffusers.pipelines.flux.modeling_flux import ReduxImageEncoder

from colorflux_core.errors import ColorFluxError
from tests.tiny_training import Setup
from tests.training.runs import (
    Trained,
    assert_all_that_learns_has_a_gradient,
    changed,
    fixed_batch,
    raw_batch,
    trained_stage,
    weights,
)
from training.order import generator
from training.parts import Parts


def test_distillation_needs_neither_flux_nor_the_controlnet(setup: Setup, tmp_path: Path) -> None:
    base = tmp_path / "base"
    shutil.copytree(setup.folder / "base", base)
    for name in ("transformer", "controlnet", "vae"):
        shutil.rmtree(base / name)
    output = tmp_path / "run"
    trained_stage(setup, "basic_color", output, base=base, loss="distill", steps=2)
    assert (output / "image_embedder" / "diffusion_pytorch_model.safetensors").is_file()
    assert not (output / "samples.jpg").exists()


def test_the_vision_tower_may_learn_with_redux(setup: Setup, tmp_path: Path) -> None:
    run = trained_stage(setup, "basic_color", tmp_path, train="redux+siglip", steps=2)
    after = weights(run.stage.trainable)
    learned = changed(run.before["trainable"], after)
    assert {name.partition(".")[0] for name in learned} == {"image_embedder", "image_encoder"}
    parts = Parts(setup.config("basic_color", tmp_path / "next", base=tmp_path))
    for name, model in run.stage.models.items():
        assert not changed(weights(model), weights(parts.load(name)))
    assert_all_that_learns_has_a_gradient(run.stage, run.rows)


def test_without_training_the_towers_own_tokens_are_seen(setup: Setup, tmp_path: Path) -> None:
    """Learning behind the tower's tokens or with the tower, it starts from the same loss."""
    losses = []
    for train_what in ("redux", "redux+siglip"):
        config = setup.config("basic_color", tmp_path, train=train_what)
        stage, rows, _ = setup.training("basic_color", config)
        losses.append(stage.loss(fixed_batch(stage, rows))[0].item())
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)  # The tokens are kept as bfloat16.


def test_structure_and_color_may_be_learned_jointly(setup: Setup, tmp_path: Path) -> None:
    """The undecoupled ablation (Fig. 5): a ControlNet anew, beside Redux, from the gray photo."""
    changes = {"train": "redux+controlnet", "double_blocks": 1, "single_blocks": 2, "steps": 2}
    run = trained_stage(setup, "basic_color", tmp_path, **changes)
    before, after = run.before["trainable"], weights(run.stage.trainable)
    learned = changed(before, after)
    assert {name.partition(".")[0] for name in learned} == {"image_embedder", "controlnet"}
    assert not before["controlnet.controlnet_x_embedder.weight"].any()
    assert not changed(run.before["transformer"], weights(run.stage.transformer))
    stock = {"controlnet": FluxControlNetModel, "image_embedder": ReduxImageEncoder}
    for name, model in stock.items():
        saved = model.from_pretrained(tmp_path / name, local_files_only=True)
        assert not changed(weights(run.stage.models[name]), weights(saved))
    assert_all_that_learns_has_a_gradient(run.stage, run.rows)


def test_stage_b_goes_on_from_stage_a(
    setup: Setup, trained: Callable[[str], Trained], tmp_path: Path
) -> None:
    run = trained("pro_dpo")
    config = setup.config(
        "pro_dpo", tmp_path, initial_lora=run.output / "pro_dpo.safetensors", rank=32
    )
    stage = setup.training("pro_dpo", config).stage
    assert not changed(weights(run.stage.trainable), weights(stage.trainable))
    batch = fixed_batch(run.stage, run.rows)
    assert torch.equal(stage.loss(batch)[0], run.stage.loss(batch)[0])
    learning = {n for n, p in stage.trainable.named_parameters() if p.requires_grad}
    assert learning == {n for n, _ in stage.trainable.named_parameters() if "lora_" in n}


def test_structure_may_go_on_from_a_controlnet(
    setup: Setup, trained: Callable[[str], Trained], tmp_path: Path
) -> None:
    run = trained("structure")
    config = setup.config("structure", tmp_path, initial_controlnet=run.output)
    stage = setup.training("structure", config).stage
    saved = FluxControlNetModel.from_pretrained(run.output / "controlnet", local_files_only=True)
    assert not changed(weights(saved), weights(stage.trainable))
    assert all(parameter.requires_grad for parameter in stage.trainable.parameters())


def test_basic_color_may_start_from_a_distilled_redux(
    setup: Setup, trained: Callable[[str], Trained], tmp_path: Path
) -> None:
    """It learns on from there; the teacher is still the pretrained one."""
    distilled = trained("basic_color")
    config = setup.config("basic_color", tmp_path, initial_redux=distilled.output)
    stage: Any = setup.training("basic_color", config).stage
    pretrained = Parts(config).load("image_embedder")
    assert not changed(weights(stage.trainable), weights(distilled.stage.trainable))
    assert not changed(weights(stage.pretrained), weights(pretrained))
    assert all(parameter.requires_grad for parameter in stage.trainable.parameters())
    assert not any(parameter.requires_grad for parameter in stage.pretrained.parameters())


def test_token_dropout_hides_channels_from_redux_alone(setup: Setup, tmp_path: Path) -> None:
    config = setup.config("basic_color", tmp_path, token_dropout=0.5)
    stage, rows, _ = setup.training("basic_color", config)
    raw = raw_batch(rows)
    drawn = stage.draw(raw, [generator(0, row) for row in range(4)])
    hidden = (drawn["seen"] == 0).all(dim=1)
    assert 0.3 < hidden.float().mean() < 0.7
    assert not torch.equal(hidden[0], hidden[1])
    kept = ~hidden[:, None].expand_as(drawn["seen"])
    torch.testing.assert_close(drawn["seen"][kept], 2 * raw["seen"][kept])
    assert torch.equal(drawn["color_tokens"], raw["color_tokens"])


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"train": "redux+siglip", "token_dropout": 0.5}, "--token_dropout"),
        ({"train": "redux+controlnet", "loss": "distill"}, "--loss distill.*--train redux"),
    ],
)
def test_switches_that_exclude_each_other_are_refused(
    setup: Setup, tmp_path: Path, changes: dict[str, Any], named: str
) -> None:
    with pytest.raises(ColorFluxError, match=named):
        setup.config("basic_color", tmp_path, **changes)


def test_a_vaes_decoder_is_trained_on(setup: Setup, tmp_path: Path) -> None:
    trained_stage(setup, "vae", tmp_path / "one", steps=2)
    run = trained_stage(setup, "vae", tmp_path / "two", initial_vae=tmp_path / "one", steps=2)
    config = setup.config("flux", tmp_path / "three", base=tmp_path / "one")
    before = weights(Parts(config).load("vae", dtype=torch.float32))
    learned = changed(before, weights(run.stage.trainable))
    assert {name.partition(".")[0] for name in learned} == {"decoder"}
