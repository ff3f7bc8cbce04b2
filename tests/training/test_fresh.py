"""Views that are new in every step, and photos that are made to look old."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
from PIL import Image

from colorflux_core.errors import ColorFluxError
from colorflux_core.latents import encode, pack, unpack
from tests.test_linear_vae import photos
from tests.tiny_training import CANVAS, TRAIN, Setup, synthetic_photo
from tests.training.runs import trained_stage
from training.data import gray
from training.fresh import FRESH, FreshPixels, as_convolution
from training.linear_vae import build_vae
from training.old_photo import aged, bordered
from training.order import Place
from training.parts import Parts, draw_noise, pictures


def fresh_pixels(setup: Setup, **changes: float) -> FreshPixels:
    config = setup.config("structure", Path("unused"), fresh_views=True, **changes)
    return FreshPixels(pictures(config, "structure"), config)


def test_a_view_follows_from_its_place(setup: Setup) -> None:
    column = fresh_pixels(setup, old_photos=0.5)
    assert torch.equal(column(Place(0, 7)), column(Place(0, 7)))
    assert not torch.equal(column(Place(0, 7)), column(Place(0, 7 + TRAIN)))
    assert column(Place(0, 7)).shape == (2, 3, CANVAS, CANVAS)


def test_without_aging_the_gray_photo_is_the_pictures(setup: Setup) -> None:
    color, monochrome = fresh_pixels(setup)(Place(1, 3))
    assert torch.equal(monochrome, gray(color))


def test_old_photos_are_gray_and_not_what_they_were(setup: Setup) -> None:
    column = fresh_pixels(setup, old_photos=1.0)
    changed = 0
    for place in range(8):
        color, old = column(Place(0, place))
        assert torch.equal(old[0], old[1])
        assert torch.equal(old[0], old[2])
        changed += not torch.equal(old, gray(color))
    assert changed >= 6


def test_aging_keeps_size_and_kind() -> None:
    for seed in range(20):
        old = aged(synthetic_photo(0).convert("L"), random.Random(seed))
        assert (old.size, old.mode) == ((60, 48), "L")


def test_a_border_has_no_color_and_leaves_the_middle() -> None:
    square = Image.new("RGB", (64, 64), (200, 40, 40))
    framed = bordered(square, random.Random(3))
    assert framed.size == (64, 64)
    assert framed.getpixel((32, 32)) == (200, 40, 40)
    corner = framed.getpixel((0, 0))
    assert corner in ((200, 40, 40), (corner[0],) * 3)


@pytest.mark.parametrize("stage", ["flux", "structure", "basic_color"])
def test_fresh_views_train(setup: Setup, tmp_path: Path, stage: str) -> None:
    run = trained_stage(setup, stage, tmp_path, fresh_views=True, old_photos=0.5, steps=2)
    assert list(run.rows.columns) == [FRESH]


def test_encoded_in_the_step_as_beforehand(setup: Setup) -> None:
    """The same latents and tokens, of the same picture."""
    config = setup.config("structure", Path("unused"), fresh_views=True)
    stage, rows, _ = setup.training("structure", config)
    place = Place(2, 5)
    batch = {name: column[None] for name, column in rows[place].items()}
    made = stage.fresh(batch)
    rgb = batch[FRESH][:, 0] / 255
    parts = Parts(config)
    vae = parts.load("vae", dtype=torch.float32)
    with torch.no_grad():
        torch.testing.assert_close(made["latents"], pack(encode(vae, rgb)), rtol=1e-3, atol=1e-3)
    assert made["gray_latents"].shape == made["latents"].shape


def test_coarse_noise_is_stronger_the_coarser(setup: Setup) -> None:
    """White noise has the same power at every scale, coarse noise more at each."""
    deviations = {}
    for strength in (0.0, 0.5):
        config = setup.config("structure", Path("unused"), canvas=256, coarse_noise=strength)
        noise = torch.stack(
            [
                draw_noise(torch.Size((256, 64)), torch.Generator().manual_seed(seed), config)
                for seed in range(100)
            ]
        )
        latents = unpack(noise, 32, 32)
        means = [torch.nn.functional.avg_pool2d(latents, size) * size for size in (1, 4, 16, 32)]
        deviations[strength] = [mean.std().item() for mean in means]
    assert deviations[0.0] == pytest.approx([1, 1, 1, 1], rel=0.1)
    fine_to_coarse = deviations[0.5]
    assert fine_to_coarse == sorted(fine_to_coarse)
    assert 10 < fine_to_coarse[-1] < 40


def test_old_photos_need_fresh_views(setup: Setup) -> None:
    with pytest.raises(ColorFluxError, match="--fresh_views"):
        setup.config("structure", Path("unused"), old_photos=0.5)


def test_a_linear_encoder_is_run_as_its_convolution() -> None:
    torch.manual_seed(0)
    vae = build_vae(photos(0, 24), whitening=0.5, chroma_scale=2.0).eval()
    convolution = as_convolution(vae)
    assert convolution is not None
    weight, bias = convolution
    rgb = photos(100, 3)
    expected = encode(vae, rgb)
    encoded = torch.nn.functional.conv2d(rgb * 2 - 1, weight, bias, stride=8)
    torch.testing.assert_close(encoded, expected, rtol=3e-3, atol=2e-2)


def test_any_other_encoder_is_run_as_it_is(setup: Setup) -> None:
    config = setup.config("structure", Path("unused"))
    assert as_convolution(Parts(config).load("vae", dtype=torch.float32)) is None
