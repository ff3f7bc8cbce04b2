"""The embedded nano: what its users and every later part rely on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import FluxControlNetModel
from diffusers.pipelines.flux.modeling_flux import ReduxImageEncoder
from PIL import Image
from safetensors.torch import load_file

from benchmarks.old_photos import PHOTOS, small_luma
from benchmarks.versus_diffusers import STOCK_TOKENS, ours, stock
from colorflux_core.bundles.bundle import LORA, Bundle, load_bundle
from colorflux_core.bundles.bundle_config import EMBEDDED_NANO
from colorflux_core.model.colorization import colorize
from colorflux_core.model.latents import pack
from colorflux_core.model.pipeline import ColorFluxPipeline
from colorflux_core.photos.color import colorfulness
from colorflux_core.photos.photo import load_photo

LANDSCAPE = PHOTOS / "stdlib_french-alpine-landscape.jpg"


@pytest.fixture(scope="module")
def nano() -> Bundle:
    bundle = load_bundle("nano")
    bundle.pipeline.set_progress_bar_config(disable=True)
    return bundle


def test_it_has_the_proportions_of_flux(nano: Bundle) -> None:
    transformer, vae = nano.pipeline.transformer.config, nano.pipeline.vae.config
    assert transformer.attention_head_dim == 128
    assert tuple(transformer.axes_dims_rope) == (16, 56, 56)
    assert transformer.guidance_embeds
    assert (vae.latent_channels, len(vae.block_out_channels)) == (16, 4)


def test_it_is_small() -> None:
    assert sum(file.stat().st_size for file in EMBEDDED_NANO.rglob("*.*")) < 40 * 2**20


def test_an_old_photo_comes_back_in_color_at_its_size_with_its_structure(nano: Bundle) -> None:
    photo = load_photo(LANDSCAPE)
    rgb = colorize(nano.pipeline, photo.pixels, nano.settings)
    assert rgb.shape == photo.pixels.shape
    assert colorfulness(rgb) > 15
    structure = torch.corrcoef(torch.stack([small_luma(photo.rgb), small_luma(rgb)]))[0, 1]
    assert structure > 0.95


def test_it_is_stock_redux_and_stock_controlnet_in_one(nano: Bundle) -> None:
    scan = Image.open(LANDSCAPE).convert("L").resize((64, 48)).convert("RGB")
    noise = pack(torch.randn(1, 16, 6, 8, generator=torch.Generator().manual_seed(0)))
    mine = ours(nano, scan, noise, STOCK_TOKENS)()
    theirs = stock(nano, scan, noise, STOCK_TOKENS)()
    assert np.abs(mine - theirs).max() < 1e-4


def test_stock_diffusers_loads_its_parts(nano: Bundle) -> None:
    for name, kind in (
        ("controlnet", FluxControlNetModel),
        ("image_embedder", ReduxImageEncoder),
    ):
        loaded = kind.from_pretrained(EMBEDDED_NANO / name, torch_dtype=torch.float32)
        mine = getattr(nano.pipeline, name).state_dict()
        for key, tensor in loaded.state_dict().items():
            assert torch.equal(tensor, mine[key])


def test_stock_diffusers_loads_it_whole_with_its_lora(nano: Bundle) -> None:
    stock_way = ColorFluxPipeline.from_pretrained(EMBEDDED_NANO, local_files_only=True)
    stock_way.load_lora_weights(EMBEDDED_NANO, weight_name=LORA)
    stock_way.set_progress_bar_config(disable=True)

    def colors(pipeline: ColorFluxPipeline) -> torch.Tensor:
        photo = torch.linspace(0, 1, 32 * 48).view(1, 1, 32, 48).expand(1, 3, -1, -1)
        generator = torch.Generator().manual_seed(0)
        images: torch.Tensor = pipeline(photo, text_tokens=0, generator=generator).images
        return images

    assert torch.equal(colors(stock_way), colors(nano.pipeline))


def test_both_stages_of_pro_dpo_are_one_lora_that_changes_something() -> None:
    lora = load_file(EMBEDDED_NANO / LORA)
    assert any(tensor.any() for key, tensor in lora.items() if "lora_B" in key)
    assert not list(Path(EMBEDDED_NANO).glob("pro_dpo_*"))
