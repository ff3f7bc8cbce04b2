"""A study made from folders of results."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor
from tqdm import tqdm

from ...digest import sha256
from ...errors import ColorFluxError
from ...photos.photo import load_photo, save_photo
from ...photos.resize import Resizing, Size
from ..benchmark.methods import Method, require_clear_sets
from ..benchmark.sets import BenchmarkSet, Item
from .study import FILE, IMAGES, Shown, Study, picture_path, write_study


def create_study(
    folder: Path,
    sets: Sequence[BenchmarkSet],
    methods: Sequence[Method],
    reference: str | None,
    *,
    seed: int = 0,
    pairs: int | None = None,
    ties: bool = False,
    max_side: int = 1600,
) -> Study:
    """Write a study's folder; a run that was stopped can be repeated.

    Nothing about a picture may tell the method apart, so all results for an image are shown at
    the input's size, shrunk to ``max_side`` (0: not shrunk), and encoded alike without metadata.

    Raises:
        ColorFluxError: when the methods leave nothing to compare, a picture cannot be read, or the
            folder is a study already or cannot be written.
    """
    names = [method.name for method in methods]
    if len(names) < 2 or len({*names}) < len(names):
        raise ColorFluxError("a study compares two methods or more, each by its own name: --method")
    if reference is not None and reference not in names:
        raise ColorFluxError(f"{reference} is none of {', '.join(names)}: --reference")
    if (folder / FILE).exists():
        raise ColorFluxError(f"{folder} is a study already: serve it, or choose another with -o")
    for method in methods:
        require_clear_sets(method, [*sets])
    compared = [
        (benchmark.name, item, results)
        for benchmark in sets
        for item, results in results_to_compare(benchmark, methods, reference)
    ]
    if not compared:
        raise ColorFluxError("no image has results of two methods to compare")
    try:
        (folder / IMAGES).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ColorFluxError(
            f"{folder} cannot be made ({error.strerror}): choose another with -o"
        ) from error
    shown = tuple(
        show(folder, set, item, results, max_side)
        for set, item, results in tqdm(compared, unit="image", desc="study")
    )
    study = Study(tuple(names), reference, shown, secrets.token_hex(5), seed, pairs, ties)
    write_study(folder, study)
    return study


def results_to_compare(
    benchmark: BenchmarkSet, methods: Sequence[Method], reference: str | None
) -> list[tuple[Item, dict[str, Path]]]:
    """The images that two methods have, one of them the reference, and their results."""
    results = {method.name: method.results(benchmark) for method in methods}
    found = [
        (item, {name: files[item.name] for name, files in results.items() if item.name in files})
        for item in benchmark.items
    ]
    return [
        (item, files)
        for item, files in found
        if len(files) > 1 and (reference is None or reference in files)
    ]


def show(folder: Path, set: str, item: Item, results: dict[str, Path], max_side: int) -> Shown:
    """Write one image's pictures, all of the same size."""
    photo = load_photo(item.input)
    size = shrunk(photo.size, max_side)
    return Shown(
        set,
        item.name,
        write_picture(folder, Resizing(photo.size, size).to_canvas(photo.pixels)),
        {name: write_result(folder, path, size) for name, path in results.items()},
    )


def write_result(folder: Path, path: Path, size: Size) -> str:
    photo = load_photo(path)
    return write_picture(folder, Resizing(photo.size, size).to_canvas(photo.pixels))


def write_picture(folder: Path, rgb: Tensor) -> str:
    """The id of a picture (3, H, W) in [0, 1]: of what can be seen in it, and of nothing else."""
    id = sha256(rgb.contiguous().numpy().tobytes())[:20]
    if not picture_path(folder, id).exists():
        save_photo(picture_path(folder, id), rgb)
    return id


def shrunk(size: Size, max_side: int) -> Size:
    scale = min(1.0, max_side / max(size)) if max_side else 1.0
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))
