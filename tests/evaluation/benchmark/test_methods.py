"""Folders of results, matched to benchmark sets."""

from __future__ import annotations

from pathlib import Path

import pytest

from colorflux_core.errors import ColorFluxError
from colorflux_core.evaluation.benchmark.methods import Method, require_results
from colorflux_core.evaluation.benchmark.sets import BenchmarkSet, Item


def benchmark(name: str, *images: str) -> BenchmarkSet:
    return BenchmarkSet(name, tuple(Item(image, Path(f"{image}.png"), None) for image in images))


SYNTHESIZED = benchmark("synthesized", "beach", "forest")
AUGMENTED = benchmark("augmented", "beach", "forest")
REAL = benchmark("real", "grandma")


def method(folder: Path, *files: str) -> Method:
    for file in files:
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).touch()
    return Method("DDColor", folder)


def test_a_folder_for_each_set(tmp_path: Path) -> None:
    ddcolor = method(
        tmp_path, "synthesized/beach.png", "augmented/beach.JPG", "augmented/forest.webp"
    )
    assert ddcolor.results(SYNTHESIZED) == {"beach": tmp_path / "synthesized/beach.png"}
    assert set(ddcolor.results(AUGMENTED)) == {"beach", "forest"}
    assert ddcolor.results(REAL) == {}
    require_results(ddcolor, [SYNTHESIZED, AUGMENTED, REAL])


def test_one_folder_for_sets_with_different_names(tmp_path: Path) -> None:
    ddcolor = method(tmp_path, "beach.png", "grandma.tif", "unknown.png", "notes.txt", ".beach.png")
    assert ddcolor.results(SYNTHESIZED) == {"beach": tmp_path / "beach.png"}
    assert ddcolor.results(REAL) == {"grandma": tmp_path / "grandma.tif"}
    require_results(ddcolor, [SYNTHESIZED, REAL])


def test_one_folder_for_sets_with_the_same_names(tmp_path: Path) -> None:
    with pytest.raises(ColorFluxError, match=r"match several sets.*synthesized and augmented"):
        require_results(method(tmp_path, "beach.png"), [SYNTHESIZED, AUGMENTED])


def test_two_results_for_one_image(tmp_path: Path) -> None:
    with pytest.raises(ColorFluxError, match=r"beach\.jpg.*beach\.png.*remove one"):
        method(tmp_path, "beach.png", "beach.jpg").results(SYNTHESIZED)


def test_nothing_to_compare(tmp_path: Path) -> None:
    with pytest.raises(ColorFluxError, match="is not a folder"):
        require_results(Method("DDColor", tmp_path / "missing"), [REAL])
    with pytest.raises(ColorFluxError, match=r"no file in .* is named like an image"):
        require_results(method(tmp_path, "beach.png"), [REAL])
