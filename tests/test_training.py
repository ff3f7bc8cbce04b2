"""The trainers on tiny real models; ``python -m tests.test_training`` draws the trajectories anew.

Do that only when a change of the numbers is meant, and say why in the commit.
"""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import (
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    FluxControlNetModel,
    FluxPipeline,
    FluxTransformer2DModel,
)
from diffusers.pipelines.flux.modeling_flux import ReduxImageEncoder
from safetensors.torch import load_file
from torch import Tensor, nn

from colorflux_core.color import unit_range
from colorflux_core.errors import ColorFluxError
from colorflux_core.latents import encode, pack
from colorflux_core.lora import reference_policy
from colorflux_core.visual_prompt import image_tokens
from tests.flux_models import velocity
from tests.tiny_training import CANVAS, COLORFUL, STAGES, TRAIN, Setup, make_setup
from training import basic_color, loop, pretrain, pro_dpo, structure
from training.basic_color import BasicColorConfig
from training.bundle import BundleConfig
from training.config import parse, run
from training.data import Rows
from training.loop import CHECKPOINT, row_order, step_generator, train
from training.parts import feature_extractor, gray, images, part
from training.pretrain import VisionConfig
from training.pretrain_flux import FluxConfig
from training.pretrain_vae import VaeConfig
from training.pro_dpo import ProDpoConfig, faded_pictures, well_exposed
from training.structure import StructureConfig

ROOT = Path(__file__).resolve().parent.parent
TRAJECTORIES = Path(__file__).with_name("trajectories.json")
PAPER_STAGES = ("structure", "basic_color", "pro_dpo")


@pytest.fixture(scope="module")
def setup(tmp_path_factory: pytest.TempPathFactory) -> Setup:
    return make_setup(tmp_path_factory.mktemp("setup"))


def parts(stage: Any) -> dict[str, nn.Module]:
    return {name: value for name, value in vars(stage).items() if isinstance(value, nn.Module)}


def weights(module: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def changed(before: dict[str, Tensor], after: dict[str, Tensor]) -> set[str]:
    assert before.keys() == after.keys()
    return {name for name in before if not torch.equal(before[name], after[name])}


def metrics(output: Path) -> list[dict[str, float]]:
    lines = (output / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def fixed_batch(stage: Any, rows: Rows, size: int = 4) -> dict[str, Tensor]:
    return stage.draw(rows.batch(torch.arange(size)), step_generator(0, 0))


@dataclass
class Trained:
    """A stage after ten steps, and its parts before."""

    stage: Any
    rows: Rows
    before: dict[str, dict[str, Tensor]]
    output: Path


@pytest.fixture(scope="module")
def trained(setup: Setup, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Trained]:
    runs: dict[str, Trained] = {}

    def run(name: str) -> Trained:
        if name not in runs:
            config = setup.config(name, tmp_path_factory.mktemp("runs") / name)
            stage, rows = setup.stage(name, config)
            before = {part: weights(module) for part, module in parts(stage).items()}
            train(stage, rows, config)
            runs[name] = Trained(stage, rows, before, config.output)
        return runs[name]

    return run


# What is learned, and what is not


@pytest.mark.parametrize("name", STAGES)
def test_it_takes_the_committed_trajectory(trained: Callable[[str], Trained], name: str) -> None:
    """How to draw it anew stands at the top of this file."""
    expected = json.loads(TRAJECTORIES.read_text(encoding="utf-8"))[name]
    losses = [step["loss"] for step in metrics(trained(name).output)]
    assert losses == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("name", STAGES)
def test_a_fixed_batch_is_learned(setup: Setup, tmp_path: Path, name: str) -> None:
    stage, rows = setup.stage(name, setup.config(name, tmp_path))
    batch = fixed_batch(stage, rows)
    learning = [p for p in stage.trainable.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(learning, 1e-4 if name == "vae" else 3e-3)
    losses = []
    for _ in range(10):
        loss, _ = stage.loss(batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.99 * losses[0]


LEARNING = {
    "vae": {"trainable": r"decoder\..*"},
    "flux": {"trainable": ".*", "transformer": ".*", "redux": ".*"},
    "structure": {"trainable": ".*", "controlnet": ".*"},
    "basic_color": {"trainable": ".*", "redux": ".*"},
    "pro_dpo": {"trainable": r".*\.lora_[AB]\..*"},
}


@pytest.mark.parametrize("name", STAGES)
def test_only_what_should_learn_changes(trained: Callable[[str], Trained], name: str) -> None:
    run = trained(name)
    after = {part: weights(module) for part, module in parts(run.stage).items()}
    assert after.keys() == run.before.keys()
    for part_name, before in run.before.items():
        learned = changed(before, after[part_name])
        pattern = LEARNING[name].get(part_name, "nothing")
        assert all(re.fullmatch(pattern, weight) for weight in learned)
        assert bool(learned) == (part_name in LEARNING[name])


@pytest.mark.parametrize("name", ["flux", *PAPER_STAGES])
def test_every_weight_that_learns_has_a_gradient(
    trained: Callable[[str], Trained], name: str
) -> None:
    """Or training on several GPUs would fail. The pooled text is zero: it feeds a bias alone."""
    run = trained(name)
    run.stage.loss(fixed_batch(run.stage, run.rows))[0].backward()
    for key, parameter in run.stage.trainable.named_parameters():
        assert parameter.requires_grad == (parameter.grad is not None), key
        if parameter.grad is not None and not key.endswith("text_embedder.linear_1.weight"):
            assert parameter.grad.any(), key
    run.stage.trainable.zero_grad()


def test_the_base_on_disk_is_left_alone(
    setup: Setup, trained: Callable[[str], Trained], tmp_path: Path
) -> None:
    for name in PAPER_STAGES:
        trained(name)
    assert contents(make_setup(tmp_path / "again").folder / "base") == contents(
        setup.folder / "base"
    )


def test_the_dpo_reference_stays_the_pretrained_transformer(
    setup: Setup, trained: Callable[[str], Trained], tmp_path: Path
) -> None:
    transformer = trained("pro_dpo").stage.trainable
    pretrained = part(setup.config("pro_dpo", tmp_path), "transformer")
    with torch.no_grad():
        assert not torch.equal(velocity(transformer), velocity(pretrained))
        with reference_policy(transformer):
            assert torch.equal(velocity(transformer), velocity(pretrained))


# What each stage is told


@pytest.fixture(scope="module")
def encoded(setup: Setup) -> Callable[[Tensor], dict[str, Tensor]]:
    """Latents and image tokens of pictures, without the trainers' cache."""
    config = setup.config("structure", setup.folder)
    vae, tower = part(config, "vae"), part(config, "image_encoder")

    @torch.no_grad()
    def encode_pictures(pictures: Tensor) -> dict[str, Tensor]:
        rgb = unit_range(pictures)
        tokens = image_tokens(tower, feature_extractor(config), rgb)
        return {"latents": pack(encode(vae, rgb)), "tokens": tokens.bfloat16()}

    return encode_pictures


def same(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and torch.allclose(one.float(), other.float(), atol=1e-2)


def test_structure_is_told_the_colors_by_the_color_photo(
    setup: Setup, encoded: Callable[[Tensor], dict[str, Tensor]], tmp_path: Path
) -> None:
    config = setup.config("structure", tmp_path)
    _, rows = setup.stage("structure", config)
    pictures = images(config)
    color, monochrome = encoded(pictures), encoded(gray(pictures))
    assert len(rows) == TRAIN
    assert same(rows.columns["latents"], color["latents"])
    assert same(rows.columns["gray_latents"], monochrome["latents"])
    assert same(rows.columns["color_tokens"], color["tokens"])
    assert not same(rows.columns["color_tokens"], monochrome["tokens"])


def test_basic_color_sees_the_gray_photo_of_colorful_ones(
    setup: Setup, encoded: Callable[[Tensor], dict[str, Tensor]], tmp_path: Path
) -> None:
    config = setup.config("basic_color", tmp_path)
    _, rows = setup.stage("basic_color", config)
    pictures = images(config)[:COLORFUL]
    color, monochrome = encoded(pictures), encoded(gray(pictures))
    assert len(rows) == COLORFUL
    assert same(rows.columns["seen"], monochrome["tokens"])
    assert same(rows.columns["color_tokens"], color["tokens"])
    assert same(rows.columns["latents"], color["latents"])
    assert same(rows.columns["gray_latents"], monochrome["latents"])


def test_pro_dpo_pairs_photos_with_their_faded_selves(
    setup: Setup, encoded: Callable[[Tensor], dict[str, Tensor]], tmp_path: Path
) -> None:
    config = setup.config("pro_dpo", tmp_path, pairs=2)
    _, rows = setup.stage("pro_dpo", config)
    pictures = images(config)
    winners = pictures[well_exposed(pictures, config)].repeat(2, 1, 1, 1)
    losers = faded_pictures(winners, config, seed="pairs")
    condition = encoded(gray(losers))
    assert same(rows.columns["winner"], encoded(winners)["latents"])
    assert same(rows.columns["loser"], encoded(losers)["latents"])
    assert same(rows.columns["condition"], condition["latents"])
    assert same(rows.columns["loser_tokens"], condition["tokens"])
    assert not same(rows.columns["winner"], rows.columns["loser"])
    half = len(rows) // 2
    assert same(rows.columns["winner"][:half], rows.columns["winner"][half:])
    assert not torch.equal(losers[:half], losers[half:])


def test_photos_are_chosen_by_saturation_value_and_colorfulness() -> None:
    def flat(*rgb: int) -> Tensor:
        halves = torch.tensor([rgb, rgb[::-1]], dtype=torch.uint8)
        return halves.T[:, :, None].expand(3, 2, 4)

    pictures = {
        "fits": flat(180, 120, 90),
        "gray": flat(128, 128, 128),
        "garish": flat(200, 120, 10),
        "dark": flat(80, 60, 40),
        "bright": flat(250, 180, 130),
    }
    chosen = well_exposed(torch.stack(list(pictures.values())), ProDpoConfig())
    assert dict(zip(pictures, chosen.tolist(), strict=True)) == {
        name: name == "fits" for name in pictures
    }


# The losses, against diffusers' classes called by hand


def predicted(
    stage: Any, transformer: nn.Module, x_t: Tensor, t: Tensor, c_v: Tensor, condition: Tensor
) -> Tensor:
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
    controlnet = getattr(stage, "controlnet", stage.trainable)
    double, single = controlnet(**common, controlnet_cond=condition, return_dict=False)
    return transformer(
        **common, controlnet_block_samples=double, controlnet_single_block_samples=single
    ).sample


@torch.no_grad()
def test_the_loss_of_structure_is_eq_2(trained: Callable[[str], Trained]) -> None:
    run = trained("structure")
    batch = fixed_batch(run.stage, run.rows)
    x_0, noise, t = batch["latents"], batch["noise"], batch["t"]
    x_t = (1 - t[:, None, None]) * x_0 + t[:, None, None] * noise
    c_v = run.stage.redux(batch["color_tokens"].float()).image_embeds
    v = predicted(run.stage, run.stage.transformer, x_t, t, c_v, batch["gray_latents"])
    expected = (noise - x_0 - v).square().mean()
    torch.testing.assert_close(run.stage.loss(batch)[0], expected)


@torch.no_grad()
@pytest.mark.parametrize("terms", ["both", "flow", "distill"])
def test_the_loss_of_basic_color_is_eq_6(
    setup: Setup, trained: Callable[[str], Trained], tmp_path: Path, terms: str
) -> None:
    stage = trained("basic_color").stage
    other, _ = setup.stage("basic_color", setup.config("basic_color", tmp_path, loss=terms))
    other.trainable.load_state_dict(stage.trainable.state_dict())
    batch = fixed_batch(stage, trained("basic_color").rows)
    x_0, noise, t = batch["latents"], batch["noise"], batch["t"]
    x_t = (1 - t[:, None, None]) * x_0 + t[:, None, None] * noise
    phi = stage.trainable.redux(batch["seen"].float()).image_embeds
    phi_color = stage.pretrained(batch["color_tokens"].float()).image_embeds
    v = predicted(stage, stage.transformer, x_t, t, phi, batch["gray_latents"])
    flow = (noise - x_0 - v).square().mean()
    distill = (phi - phi_color).square().mean()
    expected = {"both": flow + 0.1 * distill, "flow": flow, "distill": distill}[terms]
    torch.testing.assert_close(other.loss(batch)[0], expected)


@torch.no_grad()
def test_the_loss_of_pro_dpo_is_eq_4(setup: Setup, tmp_path: Path) -> None:
    stage: Any
    stage, rows = setup.stage("pro_dpo", setup.config("pro_dpo", tmp_path))
    random = torch.Generator().manual_seed(5)
    for parameter in stage.trainable.parameters():
        if parameter.requires_grad:
            parameter.normal_(std=0.5, generator=random)
    batch = fixed_batch(stage, rows)
    noise, t = batch["noise"], batch["t"]
    c_v = stage.redux(batch["loser_tokens"].float()).image_embeds

    def error(x_0: Tensor) -> Tensor:
        x_t = (1 - t[:, None, None]) * x_0 + t[:, None, None] * noise
        v = predicted(stage, stage.trainable, x_t, t, c_v, batch["condition"])
        return (noise - x_0 - v).square().mean(dim=(1, 2))

    policy = error(batch["winner"]) - error(batch["loser"])
    with reference_policy(stage.trainable):
        reference = error(batch["winner"]) - error(batch["loser"])
    logit = -1000 / 2 * (policy - reference)
    loss, logged = stage.loss(batch)
    assert logit.abs().max() > 1
    torch.testing.assert_close(logged["logit"], logit.mean(), rtol=1e-4, atol=2e-3)
    torch.testing.assert_close(loss, -logit.sigmoid().log().mean(), rtol=1e-4, atol=2e-3)
    assert logged["implicit_accuracy"] == (logit > 0).float().mean()


@pytest.mark.parametrize("schedule", ["constant", "time"])
def test_pro_dpo_starts_at_ln_2(setup: Setup, tmp_path: Path, schedule: str) -> None:
    config = setup.config("pro_dpo", tmp_path, beta_schedule=schedule)
    stage, rows = setup.stage("pro_dpo", config)
    loss, logged = stage.loss(fixed_batch(stage, rows))
    assert loss.item() == pytest.approx(math.log(2), abs=1e-6)
    assert logged["implicit_accuracy"] == 0.5
    assert logged["logit"] == 0


def test_sft_is_eq_2_on_the_winner(setup: Setup, tmp_path: Path) -> None:
    """As Pro-DPO logs it, before the policy has moved."""
    dpo, rows = setup.stage("pro_dpo", setup.config("pro_dpo", tmp_path))
    sft, _ = setup.stage("pro_dpo", setup.config("pro_dpo", tmp_path, loss="sft"))
    batch = fixed_batch(dpo, rows)
    loss, logged = sft.loss(batch)
    torch.testing.assert_close(loss, dpo.loss(batch)[1]["winner_error"])
    assert not logged
    loss.backward()
    assert all((p.grad is not None) == p.requires_grad for p in sft.trainable.parameters())


# The switches


def test_distillation_needs_neither_flux_nor_the_controlnet(setup: Setup, tmp_path: Path) -> None:
    base = tmp_path / "base"
    shutil.copytree(setup.folder / "base", base)
    for name in ("transformer", "controlnet", "vae"):
        shutil.rmtree(base / name)
    config = setup.config("basic_color", tmp_path / "run", base=base, loss="distill", steps=2)
    train(*setup.stage("basic_color", config), config)
    assert (config.output / "image_embedder" / "diffusion_pytorch_model.safetensors").is_file()


def test_the_vision_tower_may_learn_with_redux(setup: Setup, tmp_path: Path) -> None:
    config = setup.config("basic_color", tmp_path, train="redux+siglip", steps=2)
    stage: Any
    stage, rows = setup.stage("basic_color", config)
    before = weights(stage.trainable)
    train(stage, rows, config)
    learned = changed(before, weights(stage.trainable))
    assert {name.partition(".")[0] for name in learned} == {"redux", "tower"}
    moved = setup.config("basic_color", tmp_path / "next", base=tmp_path)
    assert not changed(weights(stage.trainable.tower), weights(part(moved, "image_encoder")))


def test_without_training_the_towers_own_tokens_are_seen(setup: Setup, tmp_path: Path) -> None:
    """Learning behind the tower's tokens or with the tower, it starts from the same loss."""
    losses = []
    for train_what in ("redux", "redux+siglip"):
        config = setup.config("basic_color", tmp_path, train=train_what, precision="no")
        stage, rows = setup.stage("basic_color", config)
        losses.append(stage.loss(fixed_batch(stage, rows))[0].item())
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)  # The tokens are kept as bfloat16.


def test_stage_b_goes_on_from_stage_a(
    setup: Setup, trained: Callable[[str], Trained], tmp_path: Path
) -> None:
    run = trained("pro_dpo")
    config = setup.config(
        "pro_dpo", tmp_path, initial_lora=run.output / "pro_dpo.safetensors", rank=32
    )
    stage, _ = setup.stage("pro_dpo", config)
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
    stage, _ = setup.stage("structure", config)
    saved = FluxControlNetModel.from_pretrained(run.output / "controlnet")
    assert not changed(weights(saved), weights(stage.trainable))
    assert all(parameter.requires_grad for parameter in stage.trainable.parameters())


def test_basic_color_may_start_from_a_distilled_redux(
    setup: Setup, trained: Callable[[str], Trained], tmp_path: Path
) -> None:
    """It learns on from there; the teacher is still the pretrained one."""
    distilled = trained("basic_color")
    config = setup.config("basic_color", tmp_path, initial_redux=distilled.output)
    stage: Any
    stage, _ = setup.stage("basic_color", config)
    assert not changed(weights(stage.redux), weights(distilled.stage.redux))
    assert not changed(weights(stage.pretrained), weights(part(config, "image_embedder")))
    assert all(parameter.requires_grad for parameter in stage.trainable.parameters())
    assert not any(parameter.requires_grad for parameter in stage.pretrained.parameters())


def test_token_dropout_hides_channels_from_redux_alone(setup: Setup, tmp_path: Path) -> None:
    config = setup.config("basic_color", tmp_path, token_dropout=0.5)
    stage, rows = setup.stage("basic_color", config)
    raw = rows.batch(torch.arange(4))
    drawn = stage.draw(raw, step_generator(0, 0))
    hidden = (drawn["seen"] == 0).all(dim=1)
    assert 0.3 < hidden.float().mean() < 0.7
    kept = ~hidden[:, None].expand_as(drawn["seen"])
    torch.testing.assert_close(drawn["seen"][kept], 2 * raw["seen"][kept])
    assert torch.equal(drawn["color_tokens"], raw["color_tokens"])
    with pytest.raises(ColorFluxError, match="--token_dropout"):
        setup.stage(
            "basic_color",
            setup.config("basic_color", tmp_path, token_dropout=0.5, train="redux+siglip"),
        )


# The loop


def test_every_pass_is_a_permutation_wherever_it_starts() -> None:
    rows, batch = 7, 4
    order = [next(row_order(rows, batch, 3, step)) for step in range(14)]
    running = row_order(rows, batch, 3, 0)
    assert all(torch.equal(next(running), indices) for indices in order)
    passes = torch.cat(order).view(-1, rows)
    assert all(sorted(one.tolist()) == list(range(rows)) for one in passes)
    assert not any(torch.equal(one, other) for one, other in pairwise(passes))
    assert not torch.equal(order[0], next(row_order(rows, batch, 4, 0)))


@pytest.mark.parametrize("name", ["structure", "pro_dpo"])
def test_accumulation_changes_nothing(setup: Setup, tmp_path: Path, name: str) -> None:
    """Eight rows at once or one by one."""
    runs = []
    for micro_batch in (0, 1):
        config = setup.config(
            name, tmp_path / f"{micro_batch}", steps=3, batch_size=8, micro_batch=micro_batch
        )
        stage, rows = setup.stage(name, config)
        train(stage, rows, config)
        logged = [{**step, "images_per_s": 0} for step in metrics(config.output)]
        runs.append((logged, weights(stage.trainable)))
    (whole, whole_after), (parted, parted_after) = runs
    for one, other in zip(whole, parted, strict=True):
        assert other == pytest.approx(one, rel=1e-3, abs=1e-4)
    for key, tensor in whole_after.items():
        torch.testing.assert_close(parted_after[key], tensor, rtol=0, atol=2e-4)


def interrupted_at(stage: Any, step: int) -> Any:
    """The stage, with Ctrl-C pressed in the given step."""
    draw, seen = stage.draw, iter(range(step))

    def draw_or_stop(*args: Any) -> Any:
        if next(seen, None) is None:
            raise KeyboardInterrupt
        return draw(*args)

    stage.draw = draw_or_stop
    return stage


def flattened(state: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    items = state.items() if isinstance(state, dict) else enumerate(state)
    for key, value in items:
        if isinstance(value, dict | list | tuple):
            yield from flattened(value, f"{path}/{key}")
        else:
            yield f"{path}/{key}", value


def assert_equal_checkpoints(one: Path, other: Path) -> None:
    states = [dict(flattened(torch.load(path, weights_only=True))) for path in (one, other)]
    assert states[0].keys() == states[1].keys()
    for key, value in states[0].items():
        if isinstance(value, Tensor):
            assert torch.equal(value, states[1][key]), key
        else:
            assert value == states[1][key], key


@pytest.mark.parametrize("name", STAGES)
def test_resuming_is_going_on_bit_for_bit(setup: Setup, tmp_path: Path, name: str) -> None:
    """Stopped in step 3 with a checkpoint of step 2: weights, Adam, schedule and EMA are equal."""
    options = {
        "steps": 4,
        "checkpoint_every": 2,
        "ema_decay": 0.9,
        "schedule": "cosine",
        "warmup_steps": 2,
    }
    whole = setup.config(name, tmp_path / "whole", **options)
    train(*setup.stage(name, whole), whole)

    parted = setup.config(name, tmp_path / "parted", **options)
    stage, rows = setup.stage(name, parted)
    with pytest.raises(KeyboardInterrupt):
        train(interrupted_at(stage, 3), rows, parted)
    parted.resume = True
    train(*setup.stage(name, parted), parted)

    assert_equal_checkpoints(whole.output / CHECKPOINT, parted.output / CHECKPOINT)
    for artifact in whole.output.rglob("*.safetensors"):
        again = parted.output / artifact.relative_to(whole.output)
        assert again.read_bytes() == artifact.read_bytes()
    losses = {step["step"]: step["loss"] for step in metrics(parted.output)}
    assert losses == {step["step"]: step["loss"] for step in metrics(whole.output)}


def test_the_artifact_holds_the_averaged_weights(setup: Setup, tmp_path: Path) -> None:
    config = setup.config("basic_color", tmp_path, ema_decay=0.9, steps=3)
    stage, rows = setup.stage("basic_color", config)
    train(stage, rows, config)
    ema = torch.load(tmp_path / CHECKPOINT, weights_only=True)["ema"]["shadow_params"]
    saved = part(setup.config("basic_color", tmp_path, redux=tmp_path), "image_embedder")
    for average, last, kept in zip(
        ema, stage.trainable.parameters(), saved.parameters(), strict=True
    ):
        assert torch.equal(kept, average)
        assert not torch.equal(kept, last)


def test_a_checkpoint_that_is_killed_leaves_the_old_one(
    setup: Setup, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = setup.config("basic_color", tmp_path, steps=4, checkpoint_every=2)
    whole = torch.save
    saves = []

    def killed_at_the_second(state: Any, file: Any) -> None:
        saves.append(state["step"])
        if len(saves) == 2:
            file.write(b"half of it")
            raise KeyboardInterrupt
        whole(state, file)

    monkeypatch.setattr(loop.torch, "save", killed_at_the_second)
    with pytest.raises(KeyboardInterrupt):
        train(*setup.stage("basic_color", config), config)
    assert saves == [2, 4]
    assert torch.load(tmp_path / CHECKPOINT, weights_only=True)["step"] == 2
    monkeypatch.undo()
    config.resume = True
    train(*setup.stage("basic_color", config), config)
    assert torch.load(tmp_path / CHECKPOINT, weights_only=True)["step"] == 4


def test_a_loss_that_is_not_finite_stops_it(setup: Setup, tmp_path: Path) -> None:
    config = setup.config("structure", tmp_path, steps=10, checkpoint_every=1)
    stage, rows = setup.stage("structure", config)
    poisoned = int(next(row_order(len(rows), config.batch_size, config.seed, 1))[0])
    rows.columns["latents"] = rows.columns["latents"].clone()
    rows.columns["latents"][poisoned] = torch.nan
    with pytest.raises(ColorFluxError, match=r"nan at step 1:.*--learning_rate"):
        train(stage, rows, config)
    state = torch.load(tmp_path / CHECKPOINT, weights_only=True)
    assert state["step"] == 1
    assert all(tensor.isfinite().all() for tensor in state["trainable"].values())


def test_a_run_is_not_overwritten_unasked(setup: Setup, tmp_path: Path) -> None:
    config = setup.config("basic_color", tmp_path, steps=1)
    train(*setup.stage("basic_color", config), config)
    before = contents(tmp_path)
    with pytest.raises(ColorFluxError, match=f"{tmp_path}.*--resume"):
        train(*setup.stage("basic_color", config), config)
    assert contents(tmp_path) == before


@pytest.mark.parametrize(
    ("flag", "changes"),
    [
        ("--batch_size", {"batch_size": 4, "micro_batch": 3}),
        ("--batch_size", {"batch_size": 0}),
        ("--batch_size", {"micro_batch": -1}),
        ("--checkpoint_every", {"checkpoint_every": 0}),
    ],
)
def test_settings_that_do_not_fit_are_refused(
    setup: Setup, tmp_path: Path, flag: str, changes: dict[str, int]
) -> None:
    config = setup.config("basic_color", tmp_path / "run", **changes)
    with pytest.raises(ColorFluxError, match=flag):
        train(*setup.stage("basic_color", config), config)


# What is left behind


@torch.no_grad()
def test_stock_diffusers_reads_the_controlnet(
    trained: Callable[[str], Trained],
) -> None:
    run = trained("structure")
    stock = FluxControlNetModel.from_pretrained(run.output / "controlnet", local_files_only=True)
    batch = fixed_batch(run.stage, run.rows)
    expected, _ = run.stage.loss(batch)
    assert not changed(weights(run.stage.trainable), weights(stock))
    run.stage.trainable, own = stock, run.stage.trainable
    assert torch.equal(run.stage.loss(batch)[0], expected)
    run.stage.trainable = own


@torch.no_grad()
def test_stock_diffusers_reads_redux(trained: Callable[[str], Trained]) -> None:
    run = trained("basic_color")
    stock = ReduxImageEncoder.from_pretrained(run.output / "image_embedder", local_files_only=True)
    tokens = run.rows.columns["seen"].float()
    assert torch.equal(stock(tokens).image_embeds, run.stage.trainable(tokens))
    stored = load_file(run.output / "image_embedder" / "diffusion_pytorch_model.safetensors")
    assert stored.keys() == {
        f"redux_{half}.{kind}" for half in ("up", "down") for kind in ("weight", "bias")
    }


@torch.no_grad()
def test_stock_diffusers_reads_the_lora(
    setup: Setup, trained: Callable[[str], Trained], tmp_path: Path
) -> None:
    run = trained("pro_dpo")
    stock = FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=None,
        text_encoder=None,
        tokenizer=None,
        text_encoder_2=None,
        tokenizer_2=None,
        transformer=part(setup.config("pro_dpo", tmp_path), "transformer"),
    )
    stock.load_lora_weights(run.output, weight_name="pro_dpo.safetensors")
    assert torch.equal(velocity(stock.transformer), velocity(run.stage.trainable))


def test_nanos_base_is_read_by_stock_diffusers(trained: Callable[[str], Trained]) -> None:
    vae, flux = trained("vae"), trained("flux")
    stock: dict[str, Any] = {
        "vae": AutoencoderKL.from_pretrained(vae.output / "vae", local_files_only=True),
        "transformer": FluxTransformer2DModel.from_pretrained(
            flux.output / "transformer", local_files_only=True
        ),
        "redux": ReduxImageEncoder.from_pretrained(
            flux.output / "image_embedder", local_files_only=True
        ),
    }
    assert not changed(weights(vae.stage.trainable), weights(stock["vae"]))
    for name in ("transformer", "redux"):
        assert not changed(weights(getattr(flux.stage, name)), weights(stock[name]))
    scheduler = FlowMatchEulerDiscreteScheduler.from_pretrained(
        flux.output / "scheduler", local_files_only=True
    )
    assert scheduler.config.use_dynamic_shifting


@pytest.mark.parametrize("name", STAGES)
def test_a_sample_sheet_is_drawn(trained: Callable[[str], Trained], name: str) -> None:
    assert (trained(name).output / "sample.jpg").stat().st_size > 500


def test_the_first_flux_needs_no_scheduler_in_its_base(setup: Setup, tmp_path: Path) -> None:
    base = tmp_path / "base"
    for name in ("vae", "image_encoder", "feature_extractor"):
        shutil.copytree(setup.folder / "base" / name, base / name)
    config = setup.config("flux", tmp_path / "run", base=base, steps=2, sample_every=1)
    train(*setup.stage("flux", config), config)
    assert (config.output / "sample-000001.jpg").is_file()


# The command line


def test_defaults_are_the_papers() -> None:
    """Paper 7.1 to 7.3."""
    first, second, third = StructureConfig(), BasicColorConfig(), ProDpoConfig()
    assert (first.batch_size, first.learning_rate, first.epochs) == (64, 1e-5, 5)
    assert (first.double_blocks, first.single_blocks) == (4, 10)
    assert (second.batch_size, second.learning_rate, second.epochs) == (64, 1e-5, 2)
    assert (second.loss, second.alpha, second.min_colorfulness) == ("both", 0.1, 15)
    assert (third.batch_size, third.learning_rate, third.epochs) == (32, 4e-5, 2)
    assert (third.rank, third.beta, third.beta_schedule) == (32, 1000, "constant")
    assert (third.fading_low, third.fading_high, third.overexposure) == (0.5, 0.8, False)
    assert (third.min_saturation, third.max_saturation) == (0.3, 0.7)
    assert (third.min_value, third.max_value) == (0.4, 0.8)
    for config in (first, second, third):
        assert (config.canvas, config.steps, config.schedule) == (1024, 0, "constant")
        assert (config.guidance, config.text_tokens) == (3.5, 512)


CONFIGS: dict[str, Any] = {
    "structure": StructureConfig,
    "basic_color": BasicColorConfig,
    "pro_dpo": ProDpoConfig,
    "pretrain vision": VisionConfig,
    "pretrain vae": VaeConfig,
    "pretrain flux": FluxConfig,
    "bundle": BundleConfig,
}
RECIPES = sorted((ROOT / "training" / "recipes").rglob("*.toml"))


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: "/".join(path.parts[-2:]))
def test_recipes_fit_the_command_in_their_comment(recipe: Path) -> None:
    name = recipe.relative_to(ROOT).as_posix()
    command = re.search(
        r"^# python -m training\.([a-z_ ]+?) --recipe (\S+)", recipe.read_text("utf-8"), re.M
    )
    assert command and command[2] == name
    config = parse(CONFIGS[command[1]], ["--recipe", str(recipe)])
    assert config != CONFIGS[command[1]]()
    assert parse(type(config), ["--recipe", str(recipe), "--seed", "7"]).seed == 7


def test_flags_win_over_the_recipe_over_the_defaults(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text('batch_size = 8\nrank = 2\noverexposure = true\nbase = "b"\n', "utf-8")
    for flag in ("--batch_size", "--batch-size"):
        config = parse(ProDpoConfig, ["--recipe", str(recipe), flag, "4"])
        assert (config.batch_size, config.rank, config.overexposure) == (4, 2, True)
        assert (config.base, config.beta) == (Path("b"), 1000)


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
    ],
)
@pytest.mark.parametrize("main", [structure.main, basic_color.main, pro_dpo.main])
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
    flags = ["--photos=photos", "--manifest=photos.csv", "--base=base", f"--canvas={CANVAS}"]
    with pytest.raises(ColorFluxError, match=named):
        main([*flags, f"--output={tmp_path}", f"--cache={tmp_path}", flag, value])
    assert not (tmp_path / CHECKPOINT).exists()


@pytest.mark.parametrize(
    ("main", "flag"),
    [
        (basic_color.main, ["--min_colorfulness", "200"]),
        (pro_dpo.main, ["--min_saturation", "0.99"]),
    ],
)
def test_choosing_no_photo_is_refused(
    setup: Setup, tmp_path: Path, main: Callable[[list[str]], None], flag: list[str]
) -> None:
    flags = [
        f"--photos={setup.folder / 'photos'}",
        f"--manifest={setup.folder / 'photos.csv'}",
        f"--base={setup.folder / 'base'}",
        f"--canvas={CANVAS}",
    ]
    with pytest.raises(ColorFluxError, match="--min"):
        main([*flags, f"--output={tmp_path}", *flag])


@pytest.mark.parametrize(
    ("main", "argv", "taught"),
    [
        (structure.main, [], "alone learns, with L_FM"),
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


def test_a_mistake_ends_it_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(sys, "argv", ["structure.py", "--stesp", "3"])
    with pytest.raises(SystemExit) as end:
        run(structure.main)
    signal.signal(signal.SIGTERM, before)
    assert end.value.code == "error: unrecognized arguments: --stesp 3 (--help explains)"


def test_sigterm_ends_it_in_one_line_with_a_checkpoint(setup: Setup, tmp_path: Path) -> None:
    flags = {
        "--photos": setup.folder / "photos",
        "--manifest": setup.folder / "photos.csv",
        "--output": tmp_path,
        "--canvas": CANVAS,
        "--crop": 16,
        "--batch_size": 2,
        "--steps": 100_000,
        "--checkpoint_every": 1,
    }
    process = subprocess.Popen(
        [sys.executable, "-m", "training.pretrain", "vae", *map(str, chain(*flags.items()))],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    waiting = time.monotonic()
    while not (tmp_path / CHECKPOINT).exists() and process.poll() is None:
        assert time.monotonic() - waiting < 60
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    errors = process.communicate()[1]
    assert process.returncode == 1
    assert errors.splitlines()[-1] == "stopped; --resume goes on from the last checkpoint"
    assert "Traceback" not in errors
    assert torch.load(tmp_path / CHECKPOINT, weights_only=True)["step"] >= 1


def draw_trajectories() -> None:
    torch.set_num_threads(1)
    losses = {}
    with tempfile.TemporaryDirectory() as folder:
        setup = make_setup(Path(folder) / "setup")
        for name in STAGES:
            config = setup.config(name, Path(folder) / name)
            train(*setup.stage(name, config), config)
            losses[name] = [step["loss"] for step in metrics(config.output)]
    TRAJECTORIES.write_text(json.dumps(losses, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    draw_trajectories()
