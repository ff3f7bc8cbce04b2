"""What each stage is told of a photo, and which photos it takes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from colorflux_core.errors import ColorFluxError
from colorflux_core.model.latents import encode, pack
from colorflux_core.model.visual_prompt import image_tokens
from colorflux_core.photos.color import unit_range
from tests.training.runs import raw_batch
from tests.training.tiny_training import CANVAS, COLORFUL, TRAIN, Setup
from training.data.pictures import Picture, gray, pixels, training_pictures
from training.encode.encoding import color_statistics
from training.models.parts import Parts, feature_extractor
from training.pro_dpo import ProDpoConfig, colorful_and_exposed, losers

Encoded = dict[str, Tensor]


@pytest.fixture(scope="module")
def encoded(setup: Setup) -> Callable[[Tensor], Encoded]:
    """Latents and image tokens of uint8 pictures, without the trainers' cache."""
    config = setup.config("structure", setup.folder)
    parts = Parts(config)
    vae, tower = parts.load("vae"), parts.load("image_encoder")

    @torch.no_grad()
    def encode_pictures(pictures: Tensor) -> Encoded:
        rgb = unit_range(pictures)
        tokens = image_tokens(tower, feature_extractor(config), rgb)
        return {"latents": pack(encode(vae, rgb)), "tokens": tokens}

    return encode_pictures


def same(one: Tensor, other: Tensor) -> bool:
    """But for how they are kept: latents in float16, tokens in bfloat16."""
    return one.shape == other.shape and torch.allclose(one.float(), other.float(), atol=1e-2)


def test_structure_is_told_the_colors_by_the_color_photo(
    setup: Setup, encoded: Callable[[Tensor], Encoded], tmp_path: Path
) -> None:
    config = setup.config("structure", tmp_path)
    rows = setup.training("structure", config).rows
    photos = pixels(training_pictures(config, "structure"))
    color, monochrome = encoded(photos), encoded(gray(photos))
    inputs = raw_batch(rows, len(rows))
    assert len(rows) == TRAIN
    assert same(inputs["latents"], color["latents"])
    assert same(inputs["gray_latents"], monochrome["latents"])
    assert same(inputs["color_tokens"], color["tokens"])
    assert not same(inputs["color_tokens"], monochrome["tokens"])


def test_basic_color_sees_the_gray_photo_of_colorful_ones(
    setup: Setup, encoded: Callable[[Tensor], Encoded], tmp_path: Path
) -> None:
    config = setup.config("basic_color", tmp_path)
    rows = setup.training("basic_color", config).rows
    photos = pixels(training_pictures(config, "basic_color"))[:COLORFUL]
    color, monochrome = encoded(photos), encoded(gray(photos))
    inputs = raw_batch(rows, len(rows))
    assert len(rows) == COLORFUL
    assert same(inputs["gray_input"], monochrome["tokens"])
    assert same(inputs["color_tokens"], color["tokens"])
    assert same(inputs["latents"], color["latents"])
    assert same(inputs["gray_latents"], monochrome["latents"])


def chosen(config: ProDpoConfig) -> list[Picture]:
    candidates = training_pictures(config, "pro_dpo")
    fit = colorful_and_exposed(color_statistics(config, candidates), config)
    return [picture for picture, fits in zip(candidates, fit.tolist(), strict=True) if fits]


@pytest.fixture(scope="module")
def winners(setup: Setup) -> list[Picture]:
    return chosen(setup.config("pro_dpo", setup.folder))


def test_pro_dpo_pairs_photos_with_their_faded_selves(
    setup: Setup, winners: list[Picture], encoded: Callable[[Tensor], Encoded], tmp_path: Path
) -> None:
    config = setup.config("pro_dpo", tmp_path, pairs=2)
    rows = setup.training("pro_dpo", config).rows
    faded = pixels([*losers(winners, config, "0"), *losers(winners, config, "1")])
    condition = encoded(gray(faded))
    inputs = raw_batch(rows, len(rows))
    half = len(rows) // 2
    assert half == len(winners)
    assert same(inputs["winner"], encoded(pixels(winners * 2))["latents"])
    assert same(inputs["loser"], encoded(faded)["latents"])
    assert same(inputs["gray_latents"], condition["latents"])
    assert same(inputs["gray_tokens"], condition["tokens"])
    assert not same(inputs["winner"], inputs["loser"])
    assert same(inputs["winner"][:half], inputs["winner"][half:])
    assert not any(map(torch.equal, faded[:half], faded[half:]))


def test_losers_made_in_the_step_are_told_like_kept_ones(
    setup: Setup, winners: list[Picture], encoded: Callable[[Tensor], Encoded], tmp_path: Path
) -> None:
    """The loser, the condition and its prompt all come of one and the same faded photo."""
    stage, rows, _ = setup.training("pro_dpo", setup.config("pro_dpo", tmp_path, pairs=0))
    batch = raw_batch(rows)
    faded = batch["loser_pixels"]
    inputs = stage.prepare_batch(batch, [torch.Generator() for _ in range(4)])
    condition = encoded(gray(faded))
    assert faded.shape == (4, 3, CANVAS, CANVAS)
    assert not same(faded, pixels(winners[:4]))
    assert same(inputs["winner"], encoded(pixels(winners[:4]))["latents"])
    assert same(inputs["loser"], encoded(faded)["latents"])
    assert same(inputs["gray_latents"], condition["latents"])
    assert same(inputs["gray_tokens"], condition["tokens"])


def test_photos_are_chosen_by_colorfulness_saturation_and_value(tmp_path: Path) -> None:
    """All but one of these fail at one bound each."""
    colors = {
        "fits": (180, 120, 90),
        "dull": (130, 100, 88),
        "pale": (200, 144, 144),
        "garish": (200, 120, 10),
        "dark": (95, 45, 30),
        "bright": (250, 130, 130),
    }
    for name, color in colors.items():
        Image.new("RGB", (CANVAS, CANVAS), color).save(tmp_path / f"{name}.png")
    manifest = tmp_path / "photos.csv"
    lines = ["file,split", *(f"{name}.png,train" for name in colors)]
    manifest.write_text("\n".join(lines), encoding="utf-8")
    config = ProDpoConfig(manifest=manifest, cache=tmp_path, canvas=CANVAS, workers=0)
    assert [picture.photo.file.stem for picture in chosen(config)] == ["fits"]


@pytest.mark.parametrize(
    ("stage", "changes"),
    [
        ("basic_color", {"min_colorfulness": 200}),
        ("pro_dpo", {"min_saturation": 0.99}),
        ("pro_dpo", {"max_value": 0.01}),
    ],
)
def test_choosing_no_photo_is_refused(
    setup: Setup, tmp_path: Path, stage: str, changes: dict[str, float]
) -> None:
    with pytest.raises(ColorFluxError, match="--min"):
        setup.training(stage, setup.config(stage, tmp_path, **changes))
