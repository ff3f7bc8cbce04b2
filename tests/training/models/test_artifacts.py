"""What a run leaves behind is read by stock diffusers."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

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

from tests.flux_models import velocity
from tests.training.runs import (
    Trained,
    changed,
    fixed_batch,
    raw_batch,
    saved_state,
    trained_stage,
    weights,
)
from tests.training.tiny_training import Setup
from training.models.parts import Parts


@torch.no_grad()
def test_stock_diffusers_reads_the_controlnet(trained: Callable[[str], Trained]) -> None:
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
    tokens = raw_batch(run.rows)["gray_input"].float()
    own = run.stage.models["image_embedder"]
    assert torch.equal(stock(tokens).image_embeds, own(tokens).image_embeds)
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
        transformer=Parts(setup.config("pro_dpo", tmp_path)).load("transformer"),
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


def test_the_artifact_holds_the_averaged_weights(setup: Setup, tmp_path: Path) -> None:
    run = trained_stage(setup, "basic_color", tmp_path, ema_decay=0.9, steps=3)
    averages = saved_state(tmp_path)["ema"]["shadow_params"]
    saved = ReduxImageEncoder.from_pretrained(tmp_path / "image_embedder", local_files_only=True)
    for average, last, kept in zip(
        averages, run.stage.trainable.parameters(), saved.parameters(), strict=True
    ):
        assert torch.equal(kept, average)
        assert not torch.equal(kept, last)


def test_the_artifact_goes_where_it_is_wanted(setup: Setup, tmp_path: Path) -> None:
    artifact = tmp_path / "base"
    trained_stage(setup, "pro_dpo", tmp_path / "run", steps=1, artifact=artifact)
    assert [path.name for path in artifact.iterdir()] == ["pro_dpo.safetensors"]
    assert not (tmp_path / "run" / "pro_dpo.safetensors").exists()


def test_the_first_flux_needs_no_scheduler_in_its_base(setup: Setup, tmp_path: Path) -> None:
    base = tmp_path / "base"
    for name in ("vae", "image_encoder", "feature_extractor"):
        shutil.copytree(setup.folder / "base" / name, base / name)
    trained_stage(setup, "flux", tmp_path / "run", base=base, steps=1)
    assert (tmp_path / "run" / "samples.jpg").is_file()
