"""Build benchmark sets from photos, deterministically."""

from __future__ import annotations

import io
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image
from tqdm import tqdm

from ...cli.batch import tone_of
from ...digest import sha256
from ...errors import ColorFluxError
from ...photos.color import Fading, fade, grayscale, sample_fading, unit_range
from ...photos.images import eight_bit, to_uint8
from ...photos.photo import Photo, load_photo
from ..rows import read_rows, write_file, write_rows
from .sets import KINDS, MANIFEST, Row


@dataclass(frozen=True)
class Recipe:
    """How color photos become benchmark sets.

    The paper does not state the fading strength of its augmented set; the default is the combined
    range of both Pro-DPO stages.
    """

    seed: int = 0
    fading_low: float = 0.5
    fading_high: float = 0.95
    max_side: int = 0
    """Maximum long side in pixels; larger photos are shrunk, 0 keeps their size."""

    square: int = 0
    """Side of a square all photos are resized to, like a square model canvas; 0 keeps the shape."""


def build_sets(
    photos: Sequence[Path], old_photos: Sequence[Path], folder: Path, recipe: Recipe
) -> list[str]:
    """Write ``synthesized`` and ``augmented`` from color photos, and ``real`` from old photos.

    Replaces an earlier build in ``folder``.

    Returns:
        One line for each skipped photo: it cannot be read, or it is gray and so has no true colors.

    Raises:
        ColorFluxError: if no photo is left, two photos have the same name, or the folder cannot be
            written.
    """
    require_unique_names(photos)
    require_unique_names(old_photos)
    remove_build(folder)
    rows: list[Row] = []
    left_out: list[str] = []
    todo = [(path, write_color_photo) for path in photos]
    todo += [(path, write_old_photo) for path in old_photos]
    for path, write in tqdm(todo, unit="photo", desc="sets"):
        try:
            photo = load_photo(path)
        except ColorFluxError as error:
            left_out.append(str(error))
            continue
        if write is write_color_photo and tone_of(photo) != "color":
            left_out.append(f"{path} is gray, so it has no true colors")
            continue
        rows += write(photo, folder, recipe)
    if not rows:
        raise ColorFluxError(f"no usable photo for a benchmark set; the first one: {left_out[0]}")
    rows.sort(key=lambda row: (KINDS.index(row.set), row.name))
    write_rows(folder / MANIFEST, Row._fields, rows)
    return left_out


def remove_build(folder: Path) -> None:
    """Remove an earlier build, manifest first, so that no partial build looks complete."""
    try:
        rows = [Row(*row) for row in read_rows(folder / MANIFEST, Row._fields)]
    except ColorFluxError:
        return
    (folder / MANIFEST).unlink()
    for name in {name for row in rows for name in (row.input, row.truth) if name}:
        if Path(name).parts[:-1] in {("truth",), *((kind,) for kind in KINDS)}:
            (folder / name).unlink(missing_ok=True)


def write_color_photo(photo: Photo, folder: Path, recipe: Recipe) -> Iterator[Row]:
    """Write a photo's truth and its images in both sets; yield their manifest rows."""
    name = photo.path.stem
    true = resized(eight_bit(photo.pixels), recipe)
    fading = fading_of(name, recipe)
    truth = write_png(folder, f"truth/{name}.png", true)
    source = sha256(photo.path.read_bytes())
    for kind, image in {"synthesized": true, "augmented": fade(true, fading)}.items():
        yield Row(
            kind,
            name,
            write_png(folder, f"{kind}/{name}.png", to_gray(image)),
            truth,
            str(recipe.seed) if kind == "augmented" else "",
            factors(fading) if kind == "augmented" else "",
            photo.path.name,
            source,
        )


def write_old_photo(photo: Photo, folder: Path, recipe: Recipe) -> Iterator[Row]:
    """Write an old photo to the set ``real``; yield its manifest row."""
    name = photo.path.stem
    image = resized(eight_bit(photo.pixels), recipe)
    written = write_png(folder, f"real/{name}.png", image)
    source = sha256(photo.path.read_bytes())
    yield Row("real", name, written, "", "", "", photo.path.name, source)


def fading_of(name: str, recipe: Recipe) -> Fading:
    """Sample a fading that depends only on the photo's name and the seed, not on other photos."""
    return sample_fading(
        random.Random(f"{recipe.seed}/{name}"), recipe.fading_low, recipe.fading_high
    )


def factors(fading: Fading) -> str:
    """Format a fading for the manifest, such as ``contrast 0.7310 brightness 0.9000``."""
    return " ".join(f"{operation} {factor:.4f}" for operation, factor in fading.steps)


def resized(image: Image.Image, recipe: Recipe) -> Image.Image:
    """Apply ``square`` or ``max_side``."""
    if recipe.square:
        return image.resize((recipe.square, recipe.square), Image.Resampling.LANCZOS)
    longest = max(image.size)
    if recipe.max_side and longest > recipe.max_side:
        size = [max(1, round(side * recipe.max_side / longest)) for side in image.size]
        return image.resize((size[0], size[1]), Image.Resampling.LANCZOS)
    return image


def to_gray(image: Image.Image) -> Image.Image:
    """Convert to 8-bit BT.601 luma in three equal channels, like a gray scan."""
    return eight_bit(grayscale(unit_range(to_uint8(image))))


def write_png(folder: Path, name: str, image: Image.Image) -> str:
    """Write an image and return ``name``, its path relative to the folder."""
    encoded = io.BytesIO()
    image.save(encoded, "PNG")
    write_file(folder / name, encoded.getvalue())
    return name


def require_unique_names(photos: Sequence[Path]) -> None:
    """Raise ColorFluxError if two photos share a name, because results are matched by name."""
    seen: dict[str, Path] = {}
    for path in photos:
        name = path.stem.casefold()
        if name in seen:
            raise ColorFluxError(f"{seen[name]} and {path} have the same name: rename one")
        seen[name] = path
