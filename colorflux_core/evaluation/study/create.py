"""Create a study from folders of results."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor
from tqdm import tqdm

from ...digest import sha256
from ...errors import ColorFluxError
from ...photos.canvas import Size
from ...photos.photo import load_photo, save_photo
from ...photos.resize import Resizing
from ..benchmark.methods import Method, require_results
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
    """Write a study's folder; an interrupted call can be repeated.

    Nothing about an image may reveal its method, so all results for an image are resized to the
    input's size and encoded the same way, without metadata.

    Args:
        reference: The method on one side of every pair; None compares all methods with each other.
        seed: Seed of all schedules.
        pairs: Pairs per participant; None shows every pair once.
        ties: Whether "equal" is a valid answer.
        max_side: Maximum long side of the images shown, in pixels; 0 keeps the input's size.

    Raises:
        ColorFluxError: if there is nothing to compare, an image cannot be read, or the folder
            already has a study or cannot be written.
    """
    names = [method.name for method in methods]
    if len(names) < 2 or len({*names}) < len(names):
        raise ColorFluxError(
            "a study needs at least two methods with different names: add --method"
        )
    if reference is not None and reference not in names:
        raise ColorFluxError(
            f"--reference {reference} is not one of the methods {', '.join(names)}"
        )
    if (folder / FILE).exists():
        raise ColorFluxError(
            f"{folder} already has a study: serve it, or choose another folder with -o"
        )
    for method in methods:
        require_results(method, [*sets])
    compared = [
        (benchmark.name, item, results)
        for benchmark in sets
        for item, results in results_to_compare(benchmark, methods, reference)
    ]
    if not compared:
        raise ColorFluxError(
            "no image has results of two methods: check the file names in the --method folders"
        )
    try:
        (folder / IMAGES).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ColorFluxError(
            f"cannot create {folder} ({error.strerror}): choose another folder with -o"
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
    """The images for which two methods have results, one being the reference, and the results."""
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
    """Write the input and results of one image, all at the same size."""
    photo = load_photo(item.input)
    size = shrunk(photo.size, max_side)
    return Shown(
        set,
        item.name,
        write_picture(folder, Resizing(photo.size, size).to_canvas(photo.pixels)),
        {name: write_result(folder, path, size) for name, path in results.items()},
    )


def write_result(folder: Path, path: Path, size: Size) -> str:
    """Write a result at the given size and return its id."""
    photo = load_photo(path)
    return write_picture(folder, Resizing(photo.size, size).to_canvas(photo.pixels))


def write_picture(folder: Path, rgb: Tensor) -> str:
    """Write an image (3, H, W) in [0, 1] and return its id, a hash of its pixels only."""
    id = sha256(rgb.contiguous().numpy().tobytes())[:20]
    if not picture_path(folder, id).exists():
        save_photo(picture_path(folder, id), rgb)
    return id


def shrunk(size: Size, max_side: int) -> Size:
    """Scale a size down to ``max_side`` at the long side; 0 keeps it."""
    scale = min(1.0, max_side / max(size)) if max_side else 1.0
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))
