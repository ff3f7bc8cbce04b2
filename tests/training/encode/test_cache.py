"""What is encoded once is found again, by content, encoder and precision."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file, save_file
from torch import Tensor

from colorflux_core.digest import digest
from colorflux_core.errors import ColorFluxError
from tests.training.runs import Killed, files_up_to
from tests.training.tiny_training import CANVAS, Setup, synthetic_photo
from training.data.manifest import ManifestPhoto
from training.data.order import SampleIndex
from training.data.pictures import Picture, views
from training.data.rows import Pixels
from training.encode import cache
from training.encode.cache import Encode, TensorCache, encode_missing
from training.encode.encoding import cached_latents, cached_tokens
from training.models.parts import Parts


def mean_color(rgb: Tensor) -> Tensor:
    return rgb.mean((2, 3))


def no_encoder() -> Encode:
    raise AssertionError("nothing is left to encode")


class Counted:
    """An encoder that counts the pictures it was given, and is killed at the ``end``-th."""

    def __init__(self, end: int = 1000) -> None:
        self.count, self.end = 0, end

    def __call__(self, rgb: Tensor) -> Tensor:
        if self.count + len(rgb) > self.end:
            raise Killed
        self.count += len(rgb)
        return mean_color(rgb)


def save_photos(folder: Path, count: int) -> list[ManifestPhoto]:
    folder.mkdir()
    photos = []
    for seed in range(count):
        file = folder / f"{seed}.png"
        synthetic_photo(seed).save(file)
        photos.append(ManifestPhoto(file, digest(file.read_bytes())))
    return photos


@pytest.fixture
def pictures(tmp_path: Path) -> list[Picture]:
    return views(save_photos(tmp_path / "photos", 7), 16, 1, 0)


def test_every_picture_has_its_own_row(tmp_path: Path, pictures: list[Picture]) -> None:
    encode_missing(TensorCache(tmp_path / "colors"), pictures, lambda: mean_color, workers=0)
    again = TensorCache(tmp_path / "colors")
    for picture in pictures:
        mean = picture.pixels().float().mean((1, 2)) / 255
        torch.testing.assert_close(again[picture.key], mean)


def test_what_is_there_is_not_encoded_again(tmp_path: Path, pictures: list[Picture]) -> None:
    """A full store asks for no encoder at all; one that lacks some pictures, for those."""
    folder = tmp_path / "colors"
    encode_missing(TensorCache(folder), pictures[:5] * 2, lambda: mean_color, workers=0)
    encode_missing(TensorCache(folder), pictures[:5], no_encoder, workers=0)
    encoder = Counted()
    encode_missing(TensorCache(folder), pictures, lambda: encoder, workers=0)
    assert encoder.count == 2


def test_a_renamed_photo_is_found_again_and_an_edited_one_is_not(
    tmp_path: Path, pictures: list[Picture]
) -> None:
    store = TensorCache(tmp_path / "colors")
    encode_missing(store, pictures, lambda: mean_color, workers=0)
    renamed = pictures[0].photo.file.rename(tmp_path / "another name.png")
    photo = ManifestPhoto(renamed, digest(renamed.read_bytes()))
    encode_missing(store, [replace(pictures[0], photo=photo)], no_encoder, workers=0)

    edited = pictures[1].photo.file
    synthetic_photo(99).save(edited)
    encoder = Counted()
    photo = ManifestPhoto(edited, digest(edited.read_bytes()))
    encode_missing(store, [replace(pictures[1], photo=photo)], lambda: encoder, workers=0)
    assert encoder.count == 1


def test_killed_it_loses_one_shard_at_most(
    tmp_path: Path, pictures: list[Picture], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of two rows here; the seven come one by one, and the sixth is never finished."""
    monkeypatch.setattr(cache, "ENCODE_BATCH", 1)
    monkeypatch.setattr(cache, "SHARD", 2)
    folder = tmp_path / "colors"
    with pytest.raises(Killed):
        encode_missing(TensorCache(folder), pictures, lambda: Counted(end=5), workers=0)
    kept = TensorCache(folder)
    assert [picture.key in kept for picture in pictures] == [True] * 4 + [False] * 3
    encoder = Counted()
    encode_missing(kept, pictures, lambda: encoder, workers=0)
    assert encoder.count == 3
    assert all(picture.key in kept for picture in pictures)


@pytest.mark.parametrize("share", [0.0, 0.02, 0.5, 0.99])
def test_half_a_shard_is_refused_by_name_and_made_anew(
    tmp_path: Path, pictures: list[Picture], share: float
) -> None:
    folder = tmp_path / "colors"
    encode_missing(TensorCache(folder), pictures, lambda: mean_color, workers=0)
    (shard,) = folder.iterdir()
    os.truncate(shard, int(shard.stat().st_size * share))
    with pytest.raises(ColorFluxError, match=f"{shard} is damaged .*: delete it"):
        TensorCache(folder)
    shard.unlink()
    store = TensorCache(folder)
    encode_missing(store, pictures, lambda: mean_color, workers=0)
    assert all(picture.key in store for picture in pictures)


def test_what_is_half_written_is_not_read(tmp_path: Path, pictures: list[Picture]) -> None:
    folder = tmp_path / "colors"
    encode_missing(TensorCache(folder), pictures, lambda: mean_color, workers=0)
    (shard,) = folder.iterdir()
    shard.with_suffix(".123").write_bytes(shard.read_bytes()[:100])
    encode_missing(TensorCache(folder), pictures, no_encoder, workers=0)


def test_a_full_disk_leaves_no_half_shard(tmp_path: Path, pictures: list[Picture]) -> None:
    folder = tmp_path / "pixels"
    with (
        files_up_to(10_000),
        pytest.raises(ColorFluxError, match=f"{folder}.* cannot be .*--cache"),
    ):
        encode_missing(TensorCache(folder), pictures, lambda: lambda rgb: rgb, workers=0)
    assert not list(folder.iterdir())
    encode_missing(TensorCache(folder), pictures, lambda: lambda rgb: rgb, workers=0)
    assert (next(folder.iterdir())).stat().st_size > 10_000


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path, pictures: list[Picture]) -> None:
    (tmp_path / "cache").write_text("a file", encoding="utf-8")
    with pytest.raises(ColorFluxError, match=f"{tmp_path / 'cache'}.* cannot be written .*--cache"):
        encode_missing(
            TensorCache(tmp_path / "cache" / "colors"), pictures, lambda: mean_color, workers=0
        )


def test_workers_fill_it_alike(tmp_path: Path, pictures: list[Picture]) -> None:
    alone, shared = TensorCache(tmp_path / "alone"), TensorCache(tmp_path / "shared")
    encode_missing(alone, pictures, lambda: mean_color, workers=0)
    encode_missing(shared, pictures, lambda: mean_color, workers=2)
    assert alone.index.keys() == shared.index.keys()
    assert all(torch.equal(alone[key], shared[key]) for key in alone.index)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_photo_that_cannot_be_read_is_named(
    tmp_path: Path, pictures: list[Picture], workers: int
) -> None:
    broken = pictures[4].photo.file
    broken.write_bytes(b"not a photo")
    with pytest.raises(ColorFluxError) as refusal:
        encode_missing(TensorCache(tmp_path / "colors"), pictures, lambda: mean_color, workers)
    assert str(refusal.value).startswith(f"{broken} is ")
    assert "\n" not in str(refusal.value)


# The encoders of a base


def read(cached: Callable[[SampleIndex], Tensor], pictures: list[Picture]) -> Tensor:
    return torch.stack([cached(SampleIndex(row, 0)) for row in range(len(pictures))])


def test_another_encoder_or_precision_encodes_anew(setup: Setup, tmp_path: Path) -> None:
    """And the first one's rows are still there."""
    base = tmp_path / "base"
    shutil.copytree(setup.folder / "base", base)
    pictures = views(save_photos(tmp_path / "photos", 2), CANVAS, 1, 0)

    def encoded(**changes: Any) -> Tensor:
        AcceleratorState._reset_state(reset_partial_state=True)
        config = setup.config("structure", tmp_path, base=base, cache=tmp_path / "cache", **changes)
        return read(cached_latents(Parts(config), pictures), pictures)

    def folders() -> int:
        return len(list((tmp_path / "cache").iterdir()))

    first = encoded()
    assert torch.equal(encoded(), first) and folders() == 1
    rough = encoded(precision="bf16")
    assert folders() == 2
    assert not torch.equal(rough, first)
    torch.testing.assert_close(rough, first, atol=0.1, rtol=0)

    file = base / "vae" / "diffusion_pytorch_model.safetensors"
    weights = load_file(file)
    weights["encoder.conv_out.bias"] += 1
    save_file(weights, file, metadata={"format": "pt"})
    shifted = encoded()
    assert folders() == 3
    assert (shifted - first).abs().max() > 0.1
    save_file(weights | {"encoder.conv_out.bias": weights["encoder.conv_out.bias"] - 1}, file)
    torch.testing.assert_close(encoded(), first, atol=2e-3, rtol=1e-3)


def test_the_scale_of_the_latents_is_the_encoders_too(setup: Setup, tmp_path: Path) -> None:
    """It stands in the folder's config.json."""
    base = tmp_path / "base"
    shutil.copytree(setup.folder / "base", base)
    pictures = views(save_photos(tmp_path / "photos", 1), CANVAS, 1, 0)
    config = setup.config("structure", tmp_path, base=base, cache=tmp_path / "cache")
    first = read(cached_latents(Parts(config), pictures), pictures)
    text = (base / "vae" / "config.json").read_text(encoding="utf-8")
    changed = text.replace('"scaling_factor": 0.3611', '"scaling_factor": 0.7222')
    assert changed != text
    (base / "vae" / "config.json").write_text(changed, encoding="utf-8")
    second = read(cached_latents(Parts(config), pictures), pictures)
    torch.testing.assert_close(second, 2 * first, atol=4e-3, rtol=2e-3)


def test_the_preprocessing_is_the_vision_towers_too(setup: Setup, tmp_path: Path) -> None:
    base = tmp_path / "base"
    shutil.copytree(setup.folder / "base", base)
    pictures = views(save_photos(tmp_path / "photos", 1), CANVAS, 1, 0)
    config = setup.config("structure", tmp_path, base=base, cache=tmp_path / "cache")
    first = read(cached_tokens(Parts(config), pictures), pictures)
    file = base / "feature_extractor" / "preprocessor_config.json"
    options = json.loads(file.read_text(encoding="utf-8"))
    file.write_text(json.dumps(options | {"image_mean": [0.2] * 3}), encoding="utf-8")
    assert not torch.equal(read(cached_tokens(Parts(config), pictures), pictures), first)


@pytest.mark.parametrize(
    ("precision", "of_latents", "of_tokens"),
    [("no", torch.float32, torch.float32), ("bf16", torch.float16, torch.bfloat16)],
)
def test_rows_are_kept_in_as_many_bits_as_are_trained_in(
    setup: Setup, tmp_path: Path, precision: str, of_latents: torch.dtype, of_tokens: torch.dtype
) -> None:
    pictures = views(save_photos(tmp_path / "photos", 1), CANVAS, 1, 0)
    config = setup.config("structure", tmp_path, cache=tmp_path / "cache", precision=precision)
    kept = cached_latents(Parts(config), pictures), cached_tokens(Parts(config), pictures)
    assert [cached(SampleIndex(0, 0)).dtype for cached in kept] == [torch.float32, of_tokens]
    stored = [cached.cache[pictures[0].key] for cached in kept]
    assert [row.dtype for row in stored] == [of_latents, of_tokens]
    assert [row.shape for row in stored] == [((CANVAS // 16) ** 2, 64), (16, 24)]


NEEDED = {
    "structure": {"transformer", "image_embedder"},
    "basic_color": {"transformer", "controlnet", "image_embedder"},
    "pro_dpo": {"transformer", "controlnet", "image_embedder"},
}
ENCODERS = {"vae", "image_encoder"}


@pytest.mark.parametrize(
    ("name", "changes", "needed"),
    [
        *((name, {}, needed) for name, needed in NEEDED.items()),
        ("pro_dpo", {"pairs": 0}, NEEDED["pro_dpo"] | ENCODERS),
        ("basic_color", {"loss": "distill"}, {"image_embedder"}),
        ("basic_color", {"train": "redux+siglip"}, NEEDED["basic_color"] | {"image_encoder"}),
    ],
)
def test_with_a_full_cache_no_encoder_is_loaded(
    setup: Setup,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    changes: dict[str, Any],
    needed: set[str],
) -> None:
    """But by losers that are faded anew in every step, and a tower that learns."""
    loaded: list[str] = []
    load = Parts.load

    def noted(self: Parts, part: str, *more: Any, **options: Any) -> Any:
        loaded.append(part)
        return load(self, part, *more, **options)

    monkeypatch.setattr(Parts, "load", noted)
    config = setup.config(name, tmp_path, cache=tmp_path / "cache", **changes)
    setup.training(name, config)
    assert "image_encoder" in loaded
    loaded.clear()
    setup.training(name, config)
    assert set(loaded) == needed


def test_a_picture_is_encoded_once_for_all_of_its_rows(
    tmp_path: Path, pictures: list[Picture]
) -> None:
    """A winner has a row for each of its losers."""
    encoder = Counted()
    encode_missing(TensorCache(tmp_path / "colors"), pictures * 3, lambda: encoder, workers=0)
    assert encoder.count == len(Pixels(pictures))
