"""Benchmark sets: what they are, that they are the same in every build, and what is refused."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageEnhance

from colorflux_core.errors import ColorFluxError
from colorflux_core.evaluation.__main__ import main
from colorflux_core.evaluation.benchmark.build import Recipe, build_sets
from colorflux_core.evaluation.benchmark.sets import BenchmarkSet, read_sets


def colorful(seed: int, size: tuple[int, int] = (40, 30)) -> Image.Image:
    samples = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(samples).resize(size, Image.Resampling.BICUBIC)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for seed, name in enumerate(("beach.png", "forest.png", "street.png")):
        colorful(seed).save(folder / name)
    return folder


@pytest.fixture
def old(tmp_path: Path) -> Path:
    folder = tmp_path / "old"
    folder.mkdir()
    colorful(7).convert("L").save(folder / "grandma.png")
    return folder


def built(photos: Path, folder: Path, recipe: Recipe | None = None) -> dict[str, BenchmarkSet]:
    build_sets(photos_in(photos), [], folder, recipe or Recipe())
    return {benchmark.name: benchmark for benchmark in read_sets(folder)}


def photos_in(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def array(path: Path) -> np.ndarray:
    return np.array(Image.open(path))


def manifest(folder: Path) -> list[dict[str, str]]:
    with (folder / "sets.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_synthesized_is_the_luma_of_the_truth(photos: Path, tmp_path: Path) -> None:
    synthesized = built(photos, tmp_path / "sets")["synthesized"]
    assert [item.name for item in synthesized.items] == ["beach", "forest", "street"]
    for item in synthesized.items:
        assert item.truth is not None
        true = array(item.truth).astype(np.float64)
        np.testing.assert_array_equal(true, array(photos / f"{item.name}.png"))
        luma = true @ [0.299, 0.587, 0.114]
        given = array(item.input)
        assert np.abs(given - luma[..., None]).max() <= 0.5 + 1e-3
        assert (given == given[..., :1]).all()


def test_the_manifest_s_factors_make_the_augmented_photo(photos: Path, tmp_path: Path) -> None:
    """By Pillow's enhancers alone, from the truth."""
    folder = tmp_path / "sets"
    augmented = built(photos, folder)["augmented"]
    rows = {row["name"]: row for row in manifest(folder) if row["set"] == "augmented"}
    enhancers = {
        "brightness": ImageEnhance.Brightness,
        "contrast": ImageEnhance.Contrast,
        "saturation": ImageEnhance.Color,
    }
    for item in augmented.items:
        assert item.truth is not None
        image: Image.Image = Image.open(item.truth)
        words = rows[item.name]["factors"].split()
        for operation, factor in zip(words[::2], map(float, words[1::2]), strict=True):
            assert 0.5 <= factor <= 0.95
            image = enhancers[operation](image).enhance(factor)
        luma = np.array(image).astype(np.float64) @ [0.299, 0.587, 0.114]
        # The manifest rounds the factors, and Pillow each step's pixels.
        assert np.abs(array(item.input)[..., 0] - luma).max() <= 1.6


def test_every_build_is_the_same(photos: Path, tmp_path: Path) -> None:
    for name in ("one", "other"):
        built(photos, tmp_path / name)
    files = sorted(path for path in (tmp_path / "one").rglob("*") if path.is_file())
    assert len(files) == 3 * 3 + 1
    for file in files:
        same = tmp_path / "other" / file.relative_to(tmp_path / "one")
        assert file.read_bytes() == same.read_bytes()


def test_another_photo_or_seed(photos: Path, tmp_path: Path) -> None:
    """Another photo beside it does not change how a photo is faded; another seed does."""
    folder = tmp_path / "sets"
    built(photos, folder)
    before = {row["name"]: row["factors"] for row in manifest(folder)}
    colorful(9).save(photos / "alley.png")
    built(photos, folder)
    after = {row["name"]: row["factors"] for row in manifest(folder)}
    assert {name: after[name] for name in before} == before
    built(photos, folder, Recipe(seed=1))
    assert {row["name"]: row["factors"] for row in manifest(folder)} != after


def test_old_photos_are_left_as_they_are(photos: Path, old: Path, tmp_path: Path) -> None:
    build_sets(photos_in(photos), photos_in(old), tmp_path / "sets", Recipe())
    names = [benchmark.name for benchmark in read_sets(tmp_path / "sets")]
    assert names == ["synthesized", "augmented", "real"]
    (grandma,) = read_sets(tmp_path / "sets")[-1].items
    assert grandma.truth is None
    np.testing.assert_array_equal(array(grandma.input)[..., 0], array(old / "grandma.png"))


@pytest.mark.parametrize(
    ("recipe", "size"),
    [
        (Recipe(), (40, 30)),
        (Recipe(max_side=20), (20, 15)),
        (Recipe(max_side=100), (40, 30)),
        (Recipe(square=16), (16, 16)),
    ],
)
def test_sizes(photos: Path, tmp_path: Path, recipe: Recipe, size: tuple[int, int]) -> None:
    for benchmark in built(photos, tmp_path / "sets", recipe).values():
        for item in benchmark.items:
            assert item.truth is not None
            assert Image.open(item.input).size == Image.open(item.truth).size == size


def test_what_cannot_be_a_truth_is_left_out(photos: Path, tmp_path: Path) -> None:
    colorful(3).convert("L").save(photos / "gray.png")
    (photos / "broken.png").write_bytes(b"no photo")
    left_out = build_sets(photos_in(photos), [], tmp_path / "sets", Recipe())
    assert len(left_out) == 2
    assert "broken.png" in left_out[0]
    assert "gray.png is gray, so it has no true colors" in left_out[1]
    assert {row["name"] for row in manifest(tmp_path / "sets")} == {"beach", "forest", "street"}


def test_two_photos_of_one_name(photos: Path, tmp_path: Path) -> None:
    """Refused, and what was built before is still there."""
    before = built(photos, tmp_path / "sets")
    (photos / "more").mkdir()
    colorful(4).save(photos / "more" / "beach.jpg")
    with pytest.raises(ColorFluxError, match=r"beach\.png and .*beach\.jpg .* rename one"):
        build_sets(photos_in(photos), [], tmp_path / "sets", Recipe())
    assert {benchmark.name: benchmark for benchmark in read_sets(tmp_path / "sets")} == before


def test_no_photo(tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"no photo")
    with pytest.raises(ColorFluxError, match=r"no usable photo.*broken\.png"):
        build_sets(photos_in(tmp_path), [], tmp_path / "sets", Recipe())


def test_a_folder_that_is_no_build(photos: Path, tmp_path: Path) -> None:
    with pytest.raises(ColorFluxError, match=r"sets\.csv.*evaluation sets"):
        read_sets(tmp_path)
    built(photos, tmp_path / "sets")
    (tmp_path / "sets" / "truth" / "beach.png").unlink()
    with pytest.raises(ColorFluxError, match=r"truth/beach\.png is missing"):
        read_sets(tmp_path / "sets")
    (tmp_path / "sets" / "sets.csv").write_text("set,name\nreal,a,b,c\n")
    with pytest.raises(ColorFluxError, match="is damaged"):
        read_sets(tmp_path / "sets")


@pytest.mark.parametrize("limits", [{"fading_low": 0.9, "fading_high": 0.5}, {"fading_low": -1.0}])
def test_a_fading_that_cannot_be(photos: Path, tmp_path: Path, limits: dict[str, float]) -> None:
    with pytest.raises(ColorFluxError, match="fading range"):
        build_sets(photos_in(photos), [], tmp_path / "sets", Recipe(**limits))  # type: ignore[arg-type]


def test_a_build_leaves_nothing_of_the_one_before(photos: Path, tmp_path: Path) -> None:
    built(photos, tmp_path / "sets")
    (tmp_path / "sets" / "truth" / "mine.png").write_bytes(b"mine")
    (photos / "beach.png").unlink()
    built(photos, tmp_path / "sets")
    names = {path.name for path in (tmp_path / "sets").rglob("*.png")}
    assert names == {"forest.png", "street.png", "mine.png"}


def test_the_order_is_that_of_the_names(photos: Path, tmp_path: Path) -> None:
    build_sets(photos_in(photos)[::-1], [], tmp_path / "sets", Recipe())
    names = [row["name"] for row in manifest(tmp_path / "sets")]
    assert names == ["beach", "forest", "street"] * 2


def test_photos_are_found_once_and_not_in_benchmarks(photos: Path) -> None:
    bench = photos / "bench"
    argv = [str(photos), str(photos / "beach.png"), "-o", str(bench)]
    for output in (bench, photos / "another"):
        argv[-1] = str(output)
        assert main(["sets", *argv]) == 0
        assert [row["name"] for row in manifest(output)] == ["beach", "forest", "street"] * 2
    assert main(["sets", str(photos), "-o", str(photos)]) == 2
