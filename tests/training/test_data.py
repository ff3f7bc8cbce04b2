"""Manifests, photos, and the pictures that are made of them."""

from __future__ import annotations

import csv
import random
from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest
import torch
from PIL import Image

from colorflux_core.color import Fading, sample_fading
from colorflux_core.errors import ColorFluxError
from tests.tiny_training import Setup, synthetic_photo
from training.data import (
    Photo,
    Picture,
    Pixels,
    digest,
    gray_pictures,
    load,
    pixels,
    read_manifest,
    views,
)
from training.order import MicroBatches


def write_manifest(path: Path, rows: list[dict[str, str]]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)
    return path


def save_photo(path: Path, seed: int) -> Photo:
    synthetic_photo(seed).save(path)
    return Photo(path, digest(path.read_bytes()))


@pytest.fixture
def photos(tmp_path: Path) -> list[Photo]:
    return [save_photo(tmp_path / f"{seed}.png", seed) for seed in range(3)]


def test_training_shows_a_photo_as_often_as_its_column_says(
    tmp_path: Path, photos: list[Photo]
) -> None:
    rows = [
        {"file": photo.file.name, "split": "train", "times": times}
        for photo, times in zip(photos, ("2", "", "1"), strict=True)
    ]
    manifest = write_manifest(tmp_path / "photos.csv", rows)
    first, second, third = photos
    assert read_manifest(manifest, tmp_path, "train", repeated=True) == [
        first,
        first,
        second,
        third,
    ]
    assert read_manifest(manifest, tmp_path, "train") == photos


def test_a_stage_has_the_photos_of_its_column_and_split(
    tmp_path: Path, photos: list[Photo]
) -> None:
    columns = [("train", "yes", "no"), ("validation", "yes", "yes"), ("train", "no", "yes")]
    rows = [
        {"file": photo.file.name, "split": split, "structure": structure, "pro_dpo": pro_dpo}
        for photo, (split, structure, pro_dpo) in zip(photos, columns, strict=True)
    ]
    manifest = write_manifest(tmp_path / "photos.csv", rows)

    def listed(split: str, stage: str) -> list[Photo]:
        return read_manifest(manifest, tmp_path, split, stage)

    assert listed("train", "structure") == [photos[0]]
    assert listed("train", "pro_dpo") == [photos[2]]
    assert listed("train", "basic_color") == [photos[0], photos[2]]  # It has no column.
    assert listed("validation", "structure") == [photos[1]]
    with pytest.raises(ColorFluxError, match=r"photos\.csv lists no photo of the split 'test'$"):
        read_manifest(manifest, tmp_path, "test")
    rows[0]["structure"] = "no"
    write_manifest(manifest, rows)
    with pytest.raises(ColorFluxError, match="no photo of the split 'train' for structure"):
        listed("train", "structure")


def test_a_hash_in_the_manifest_saves_reading_the_photo(
    tmp_path: Path, photos: list[Photo]
) -> None:
    rows = [
        {"file": "0.png", "split": "train", "hash": "known"},
        {"file": "1.png", "split": "train", "hash": ""},
    ]
    manifest = write_manifest(tmp_path / "photos.csv", rows)
    assert read_manifest(manifest, tmp_path, "train") == [
        Photo(photos[0].file, "known"),
        photos[1],
    ]


def test_photos_lie_beside_the_manifest_by_default(setup: Setup, tmp_path: Path) -> None:
    beside = setup.config("structure", tmp_path, manifest=tmp_path / "photos.csv", photos=None)
    assert beside.photo_folder == tmp_path
    assert setup.config("structure", tmp_path).photo_folder == setup.folder / "photos"


def test_missing_photos_are_counted_and_the_first_is_named(
    tmp_path: Path, photos: list[Photo]
) -> None:
    rows = [{"file": f"{index}.png", "split": "train"} for index in range(1, 5)]
    manifest = write_manifest(tmp_path / "photos.csv", rows)
    with pytest.raises(ColorFluxError, match=r"2 photos .* the first is 3\.png"):
        read_manifest(manifest, tmp_path, "train")


def test_keys_are_equal_where_pixels_are(tmp_path: Path, photos: list[Photo]) -> None:
    """Over photos, sizes, views, seeds, fadings and gray ones; and whatever the file is called."""
    copy = tmp_path / "copy.png"
    copy.write_bytes(photos[0].file.read_bytes())
    renamed = Photo(copy, digest(copy.read_bytes()))
    fadings: list[Fading | None] = [None, *(fading(seed) for seed in range(2))]
    variants = [
        Picture(*variant)
        for variant in product(
            [photos[0], renamed, photos[1]], (16, 24), range(3), range(2), fadings, (False, True)
        )
    ]
    pairs = {(picture.key, digest(picture.pixels().numpy().tobytes())) for picture in variants}
    assert len(pairs) == len({key for key, _ in pairs}) == len({seen for _, seen in pairs})
    # Two photos, two sizes, one whole view and two parts for each of two seeds.
    assert len(pairs) == 2 * 2 * (1 + 2 * 2) * len(fadings) * 2


def fading(seed: int) -> Fading:
    return sample_fading(random.Random(seed), 0.5, 0.8)


def test_an_edited_photo_has_another_key(tmp_path: Path) -> None:
    before = save_photo(tmp_path / "photo.png", 0)
    after = save_photo(tmp_path / "photo.png", 1)
    assert before.file == after.file
    assert Picture(before, 16).key != Picture(after, 16).key


def test_the_first_view_is_the_whole_photo(photos: list[Photo]) -> None:
    whole, *parts = views(photos[:1], 24, 5, seed=1)
    squashed = synthetic_photo(0).resize((24, 24), Image.Resampling.LANCZOS)
    assert whole.pixels().permute(1, 2, 0).flatten().tolist() == list(squashed.tobytes())
    assert len({digest(part.pixels().numpy().tobytes()) for part in (whole, *parts)}) == 5


def test_a_view_is_a_part_of_the_photo(tmp_path: Path) -> None:
    """In a photo of two ramps the part's corners say where it lies; it may be mirrored."""
    ramps = torch.zeros(90, 120, 3, dtype=torch.uint8)
    ramps[..., 0] = torch.arange(120) * 2
    ramps[..., 1] = torch.arange(90)[:, None] * 2
    Image.fromarray(ramps.numpy()).save(tmp_path / "ramps.png")
    photo = Photo(tmp_path / "ramps.png", "ramps")
    mirrored = 0
    for view in range(1, 40):
        part = Picture(photo, 32, view).pixels().float()
        left, right = sorted(part[0, 16, [1, -2]].tolist())
        top, bottom = part[1, [1, -2], 16].tolist()
        width, height = (right - left) / 2 * 32 / 29, (bottom - top) / 2 * 32 / 29
        assert top < bottom and 0.3 < width * height / (120 * 90) <= 1.05
        assert 0.7 < (width / 120) / (height / 90) < 1.4
        mirrored += bool(part[0, 16, 1] > part[0, 16, -2])
    assert 8 < mirrored < 31


def test_a_photo_stands_as_its_camera_was_held(tmp_path: Path) -> None:
    image = synthetic_photo(0)
    exif = Image.Exif()
    exif[0x0112] = 6  # To be turned a quarter to the right.
    image.save(tmp_path / "turned.png", exif=exif)
    image.transpose(Image.Transpose.ROTATE_270).save(tmp_path / "upright.png")
    turned, upright = (
        Picture(Photo(tmp_path / f"{name}.png", name), 24).pixels()
        for name in ("turned", "upright")
    )
    assert torch.equal(turned, upright)


def test_a_gray_picture_is_the_picture_in_gray(photos: list[Photo]) -> None:
    """Also where it is faded: the luma of what is seen."""
    pictures = [Picture(photo, 16, 1, fading=fading(3)) for photo in photos]
    seen, gray = pixels(pictures).float(), pixels(gray_pictures(pictures)).float()
    luma = (seen * torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)).sum(1, keepdim=True)
    assert (gray - luma).abs().max() <= 0.51


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("broken", [b"not a photo", b""])
def test_a_photo_that_cannot_be_read_is_named_in_one_line(
    photos: list[Photo], workers: int, broken: bytes
) -> None:
    photos[1].file.write_bytes(broken)
    pictures = [Picture(photo, 16) for photo in photos]
    with pytest.raises(ColorFluxError) as refusal:
        list(load(Pixels(pictures), workers, batch_size=1))
    assert str(refusal.value).startswith(f"{photos[1].file} is ")
    assert "\n" not in str(refusal.value)


def test_half_a_photo_is_not_taken_for_a_whole_one(photos: list[Photo]) -> None:
    content = photos[1].file.read_bytes()
    photos[1].file.write_bytes(content[: len(content) // 2])
    with pytest.raises(ColorFluxError, match=f"{photos[1].file} cannot be read"):
        Picture(photos[1], 16).pixels()


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("structure", {}),
        ("basic_color", {"train": "redux+siglip"}),
        ("pro_dpo", {"pairs": 0}),
    ],
)
def test_workers_give_the_same_rows(
    setup: Setup, tmp_path: Path, name: str, changes: dict[str, object]
) -> None:
    """Those that read photos in every step, too."""
    rows = setup.training(name, setup.config(name, tmp_path, **changes)).rows
    order = MicroBatches(len(rows), 4, 2, 0, range(1, 4))
    alone, shared = (list(load(rows, workers, batch_sampler=order)) for workers in (0, 2))
    assert len(alone) == len(shared) == len(order)
    for one, other in zip(alone, shared, strict=True):
        assert one.keys() == other.keys()
        assert all(torch.equal(one[column], other[column]) for column in one)


def test_a_faded_view_is_the_faded_part(photos: list[Photo]) -> None:
    """Its random part is the one of the photo that is not faded."""
    plain = Picture(photos[0], 24, view=2, seed=1)
    faded = replace(plain, fading=fading(0))
    related = torch.corrcoef(torch.stack([p.pixels().float().flatten() for p in (plain, faded)]))
    assert related[0, 1] > 0.9
    assert not torch.equal(plain.pixels(), faded.pixels())
