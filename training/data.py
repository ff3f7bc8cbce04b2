"""Photos on disk -> views (square crops, the same in every run) -> tensors to draw batches from.

A manifest is a CSV with at least the columns ``file`` (relative to the photo folder) and ``split``.
"""

from __future__ import annotations

import csv
import math
import random
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from colorflux_core.errors import ColorFluxError


def manifest_rows(manifest: Path) -> list[dict[str, str]]:
    """All rows of a manifest. Raises ColorFluxError when it or its columns are missing."""
    try:
        with manifest.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
    except OSError as error:
        raise ColorFluxError(f"cannot read --manifest {manifest}: {error.strerror}") from error
    if not rows or not {"file", "split"} <= rows[0].keys():
        raise ColorFluxError(f"--manifest {manifest} needs the columns 'file' and 'split'")
    return rows


def read_manifest(manifest: Path, folder: Path, split: str) -> list[Path]:
    """The photos of one split, in the manifest's order.

    Raises ColorFluxError when the manifest, its columns or the photos it names are missing.
    """
    rows = manifest_rows(manifest)
    photos = [folder / row["file"] for row in rows if row["split"] == split]
    if not photos:
        raise ColorFluxError(f"--manifest {manifest} lists no photo of the split {split!r}")
    missing = [photo for photo in photos if not photo.is_file()]
    if missing:
        raise ColorFluxError(
            f"{len(missing)} photos of --manifest {manifest} are not in --photos {folder},"
            f" the first is {missing[0].name}"
        )
    return photos


def open_rgb(photo: Path) -> Image.Image:
    with Image.open(photo) as image:
        return ImageOps.exif_transpose(image).convert("RGB")


def squash(image: Image.Image, side: int) -> Image.Image:
    """The whole photo on a square, as the paper feeds it (5.1)."""
    return image.resize((side, side), Image.Resampling.LANCZOS)


def random_view(image: Image.Image, side: int, rng: random.Random) -> Image.Image:
    """A random part of at least a third of the photo, squashed by at most 4:3, perhaps mirrored."""
    area = image.width * image.height * rng.uniform(0.35, 1.0)
    aspect = image.width / image.height * math.exp(rng.uniform(-0.3, 0.3))
    width = min(image.width, round(math.sqrt(area * aspect)))
    height = min(image.height, round(math.sqrt(area / aspect)))
    left, top = rng.randint(0, image.width - width), rng.randint(0, image.height - height)
    box = (left, top, left + width, top + height)
    view = image.resize((side, side), Image.Resampling.LANCZOS, box=box, reducing_gap=3.0)
    return ImageOps.mirror(view) if rng.random() < 0.5 else view


def views(photos: list[Path], side: int, per_photo: int, seed: int) -> Iterator[Image.Image]:
    """``per_photo`` views of each photo: the whole of it first, random parts after."""
    for photo in photos:
        rng = random.Random(f"{seed}/{photo.name}")
        image = open_rgb(photo)
        yield squash(image, side)
        for _ in range(per_photo - 1):
            yield random_view(image, side, rng)


def to_uint8(image: Image.Image) -> Tensor:
    """A PIL image as a uint8 tensor (3, H, W)."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


class Rows:
    """Tensors of one length, read by rows. ``batch(indices)`` gives what a stage's loss takes."""

    def __init__(self, columns: Mapping[str, Tensor]) -> None:
        self.columns = dict(columns)

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))

    def batch(self, indices: Tensor) -> dict[str, Tensor]:
        return {name: column[indices] for name, column in self.columns.items()}
