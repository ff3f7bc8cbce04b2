"""Features of tiny real vision models, and the Fréchet distance against what is known of it."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.linalg import sqrtm
from torch import Tensor
from transformers import (
    CLIPConfig,
    CLIPModel,
    CLIPVisionConfig,
    CLIPVisionModel,
    Dinov2Config,
    Dinov2Model,
    PreTrainedModel,
    SiglipVisionConfig,
    SiglipVisionModel,
)

try:
    from transformers import CLIPImageProcessorPil as CLIPImageProcessor
except ImportError:
    from transformers import CLIPImageProcessor

from colorflux_core.errors import ColorFluxError
from colorflux_core.evaluation.benchmark.methods import Method
from colorflux_core.evaluation.benchmark.sets import BenchmarkSet, Item
from colorflux_core.evaluation.metrics.feature_metrics import (
    encode,
    feature_scores,
    frechet_distance,
    load_encoder,
)

TOWER = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 16,
    "patch_size": 8,
}
TEXT = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "vocab_size": 9,
    "bos_token_id": 0,
    "eos_token_id": 1,
}
MODELS: dict[str, Callable[[], PreTrainedModel]] = {
    "clip": lambda: CLIPModel(CLIPConfig(vision_config=TOWER, text_config=TEXT, projection_dim=12)),
    "clip tower": lambda: CLIPVisionModel(CLIPVisionConfig(**TOWER)),
    "siglip tower": lambda: SiglipVisionModel(SiglipVisionConfig(**TOWER)),
    "dinov2": lambda: Dinov2Model(
        Dinov2Config(
            hidden_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=16, patch_size=8
        )
    ),
}
MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)


def save(folder: Path, model: str = "clip tower") -> Path:
    torch.manual_seed(0)
    MODELS[model]().save_pretrained(folder)
    CLIPImageProcessor(
        size={"height": 16, "width": 16}, do_center_crop=False, image_mean=MEAN, image_std=STD
    ).save_pretrained(folder)
    return folder


def write(path: Path, seed: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    return path


def a_set(folder: Path, images: int = 4) -> BenchmarkSet:
    truths = [write(folder / "truth" / f"{number}.png", number) for number in range(images)]
    return BenchmarkSet("synthesized", tuple(Item(path.stem, path, path) for path in truths))


# --- the distance


def with_moments(random: torch.Generator, mean: Tensor, covariance: Tensor) -> Tensor:
    """Forty rows that have exactly this mean and covariance."""
    rows = torch.randn(40, len(mean), generator=random, dtype=torch.float64)
    rows -= rows.mean(dim=0)
    own = torch.linalg.cholesky(rows.T @ rows / 39)
    rows = rows @ torch.linalg.inv(own).T
    return rows @ torch.linalg.cholesky(covariance).T + mean


def test_frechet_distance_of_normal_distributions_with_common_axes() -> None:
    """|m - m'|^2 + sum (s - s')^2."""
    random = torch.Generator().manual_seed(0)
    spreads = torch.tensor([[1.0, 2.0, 0.5], [3.0, 0.1, 0.5]], dtype=torch.float64)
    means = torch.tensor([[0.0, 1.0, 2.0], [0.5, 1.0, -2.0]], dtype=torch.float64)
    one, other = (
        with_moments(random, mean, spread.square().diag())
        for mean, spread in zip(means, spreads, strict=True)
    )
    expected = (means.diff(dim=0).square().sum() + spreads.diff(dim=0).square().sum()).item()
    assert frechet_distance(one, other) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("images", [(200, 150), (5, 7), (2, 50)])
def test_frechet_distance_is_that_of_scipys_matrix_root(images: tuple[int, int]) -> None:
    """Also where there are fewer images than dimensions, and its root loses digits."""
    random = np.random.default_rng(1)
    mixing = random.normal(size=(2, 12, 12))
    one, other = (random.normal(size=(n, 12)) @ m + n for n, m in zip(images, mixing, strict=True))
    covariances = [np.cov(features, rowvar=False) for features in (one, other)]
    root = sqrtm(covariances[0] @ covariances[1] + 1e-12 * np.eye(12)).real
    expected = ((one.mean(0) - other.mean(0)) ** 2).sum() + np.trace(sum(covariances) - 2 * root)
    found = frechet_distance(torch.from_numpy(one), torch.from_numpy(other))
    assert found == pytest.approx(expected, rel=1e-4)


def test_frechet_distance_of_a_shift_is_its_square_and_of_nothing_is_0() -> None:
    features = torch.randn(6, 30, generator=torch.Generator().manual_seed(2))
    assert frechet_distance(features, features.flip(0)) == pytest.approx(0, abs=1e-9)
    shift = torch.full((30,), 0.5)
    assert frechet_distance(features, features + shift) == pytest.approx(7.5, rel=1e-5)


# --- the models


@pytest.mark.parametrize("model", MODELS)
def test_features_are_the_models_own(tmp_path: Path, model: str) -> None:
    encoder = load_encoder(save(tmp_path / "model", model))
    photo = write(tmp_path / "photo.png", 3)
    pixels = torch.from_numpy(np.array(Image.open(photo))).permute(2, 0, 1) / 255
    normal = (pixels - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]
    torch.manual_seed(0)
    own = MODELS[model]().eval()
    with torch.no_grad():
        if isinstance(own, CLIPModel):
            pooled = own.vision_model(pixel_values=normal[None]).pooler_output
            expected = own.visual_projection(pooled)
        else:
            expected = own(pixel_values=normal[None]).pooler_output
    torch.testing.assert_close(encode(encoder, photo), expected[0], atol=1e-5, rtol=1e-4)
    assert encoder.kind == model.split()[0]


def test_a_folder_that_is_no_model_is_refused_in_one_line(tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(ColorFluxError, match=r"^[^\n]*empty[^\n]*$"):
        load_encoder(empty)


def test_missing_weights_are_not_made_up(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = save(tmp_path / "model")
    weights = load_file(folder / "model.safetensors")
    left_out = next(key for key in weights if "post_layernorm.weight" in key)
    del weights[left_out]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ColorFluxError, match="post_layernorm"):
        load_encoder(folder)


def test_pickles_are_not_loaded(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    folder = save(tmp_path / "model")
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(ColorFluxError):
        load_encoder(folder)


# --- the scores


def test_the_truths_themselves_are_perfect_and_others_are_not(tmp_path: Path) -> None:
    benchmark = a_set(tmp_path)
    for number in range(4):
        write(tmp_path / "ours" / f"{number}.png", 100 + number)
    methods = [Method("same", tmp_path / "truth"), Method("ours", tmp_path / "ours")]
    encoder = load_encoder(save(tmp_path / "model"))
    scores = feature_scores([benchmark], methods, encoder, tmp_path / "cache")
    found = {(s.method, s.image, s.metric): s.value for s in scores}
    assert len(found) == 2 * (4 + 1)
    one, other = (
        torch.stack([encode(encoder, tmp_path / folder / f"{n}.png") for n in range(4)])
        for folder in ("ours", "truth")
    )
    for number in range(4):
        assert found["same", str(number), "clip_similarity"] == pytest.approx(1, abs=1e-5)
        cosine = one[number] @ other[number] / (one[number].norm() * other[number].norm())
        assert found["ours", str(number), "clip_similarity"] == pytest.approx(
            cosine.item(), abs=1e-5
        )
    assert found["same", "", "clip_distance"] == pytest.approx(0, abs=1e-6)
    expected = frechet_distance(one, other)
    assert expected > 1e-3
    assert found["ours", "", "clip_distance"] == pytest.approx(expected, rel=1e-3)


def test_features_are_kept_by_content(tmp_path: Path) -> None:
    benchmark, cache = a_set(tmp_path), tmp_path / "cache"
    methods = [Method("same", tmp_path / "truth")]
    encoder = load_encoder(save(tmp_path / "model"))
    first = feature_scores([benchmark], methods, encoder, cache)
    assert len(cache.read_text(encoding="utf-8").splitlines()) == 4
    assert feature_scores([benchmark], methods, encoder, cache) == first
    assert len(cache.read_text(encoding="utf-8").splitlines()) == 4
    other = load_encoder(save(tmp_path / "other", "dinov2"))
    feature_scores([benchmark], methods, other, cache)
    assert len(cache.read_text(encoding="utf-8").splitlines()) == 8


def test_a_missing_or_damaged_result_leaves_no_distance(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    benchmark = a_set(tmp_path)
    for number in (0, 1, 2):
        write(tmp_path / "ours" / f"{number}.png", number)
    (tmp_path / "ours" / "2.png").write_bytes(b"damaged")
    encoder = load_encoder(save(tmp_path / "model"))
    with caplog.at_level(logging.WARNING):
        scores = feature_scores(
            [benchmark], [Method("ours", tmp_path / "ours")], encoder, tmp_path / "cache"
        )
    missing = {score.image: math.isnan(score.value) for score in scores}
    assert missing == {"0": False, "1": False, "2": True, "3": True, "": True}
    assert "2.png" in caplog.text


def test_sets_without_truth_have_no_scores(tmp_path: Path) -> None:
    photo = write(tmp_path / "a.png", 1)
    real = BenchmarkSet("real", (Item("a", photo, None),))
    encoder = load_encoder(save(tmp_path / "model"))
    assert not feature_scores([real], [Method("ours", tmp_path)], encoder, tmp_path / "cache")
