"""Photos of a manifest -> pictures: square views of them, the same in every run.

A manifest is a CSV with at least the columns ``file`` and ``split``. A column named as a stage says
"yes" for every photo that the stage may use; a column ``hash`` saves reading the photos for their
content. ``training.prepare`` writes all of these. A column ``times`` says how often a pass over the
training photos shows each of them.
"""

from __future__ import annotations

import csv
import hashlib
import math
import os
import random
import signal
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from colorflux_core.color import Fading, fade, grayscale, unit_range
from colorflux_core.errors import ColorFluxError
from colorflux_core.photo import load_photo

from .order import Place


@dataclass(frozen=True)
class Photo:
    file: Path
    content: str
    """A hash of what is in the file."""


@dataclass(frozen=True)
class Picture:
    """What a photo is turned into before it is encoded."""

    photo: Photo
    side: int
    view: int = 0
    """0 for the whole photo, squashed to the square; else the number of a random part."""
    seed: int = 0
    fading: Fading | None = None
    gray: bool = False

    @property
    def key(self) -> str:
        """Equal for equal pixels, whatever the file is called."""
        described = (self.photo.content, self.side, self.view, self.view and self.seed)
        return digest(repr((*described, self.fading, self.gray)).encode())

    def pixels(self) -> Tensor:
        """uint8 (3, side, side). Raises ColorFluxError when the photo cannot be read."""
        image = open_rgb(self.photo.file)
        if self.view:
            rng = random.Random(f"{self.seed}/{self.photo.content}/{self.view}")
            image = random_view(image, self.side, rng)
        else:
            image = squash(image, self.side)
        if self.fading is not None:
            image = fade(image, self.fading)
        return gray(to_uint8(image)) if self.gray else to_uint8(image)


Batch = dict[str, Tensor]
Column = Callable[[Place], Tensor]
"""What a stage is given of the row at a place, such as its latents."""


class Rows(Dataset[Batch]):
    """What a stage trains on: one row for each of ``photos``, which may come more than once."""

    def __init__(self, photos: list[Path], columns: Mapping[str, Column]) -> None:
        self.photos, self.columns = photos, columns

    def __len__(self) -> int:
        return len(self.photos)

    def __getitem__(self, place: Place) -> Batch:
        row = {name: column(place) for name, column in self.columns.items()}
        return row | {"row": torch.tensor(place.row), "place": torch.tensor(place.place)}


class Pixels(Dataset[tuple[str, Tensor]]):
    """Key and pixels of each picture."""

    def __init__(self, pictures: list[Picture]) -> None:
        self.pictures = pictures

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, index: int) -> tuple[str, Tensor]:
        return self.pictures[index].key, self.pictures[index].pixels()


def load(dataset: Dataset[Any], workers: int, **options: Any) -> Iterator[Any]:
    """Batches of a dataset, read by ``workers`` processes.

    Raises ColorFluxError as the dataset does.
    """
    fault = ""
    try:
        yield from DataLoader(
            dataset, num_workers=workers, worker_init_fn=leave_signals_to_the_trainer, **options
        )
    except ColorFluxError as error:  # From a worker it comes with a traceback in its text.
        fault = str(error).strip().rpartition("ColorFluxError: ")[2]
        error.__traceback__ = None  # It would hold on to the workers.
    if fault:
        raise ColorFluxError(fault)


def leave_signals_to_the_trainer(worker: int) -> None:
    """Ctrl-C is for the process group, which the worker leaves; SIGTERM is how it is ended."""
    if hasattr(os, "setsid"):
        os.setsid()
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


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


def read_manifest(
    manifest: Path, folder: Path, split: str, stage: str = "", repeated: bool = False
) -> list[Photo]:
    """The photos of one split that ``stage`` may use, in the manifest's order.

    Each comes once or, ``repeated``, as often as the column ``times`` says.

    Raises ColorFluxError when the manifest, its columns or the photos it names are missing.
    """
    rows = [
        row
        for row in manifest_rows(manifest)
        if row["split"] == split and row.get(stage, "yes") == "yes"
    ]
    if not rows:
        for_stage = f" for {stage}" if stage else ""
        raise ColorFluxError(
            f"--manifest {manifest} lists no photo of the split {split!r}{for_stage}"
        )
    files = [folder / row["file"] for row in rows]
    missing = [file for file in files if not file.is_file()]
    if missing:
        raise ColorFluxError(
            f"{len(missing)} photos of --manifest {manifest} are not in --photos {folder},"
            f" the first is {missing[0].name}"
        )
    return [
        Photo(file, row.get("hash") or digest(file.read_bytes()))
        for file, row in zip(files, rows, strict=True)
        for _ in range(int(row.get("times") or 1) if repeated else 1)
    ]


def views(photos: list[Photo], side: int, per_photo: int, seed: int) -> list[Picture]:
    """``per_photo`` views of each photo: the whole of it first, random parts after."""
    return [Picture(photo, side, view, seed) for photo in photos for view in range(per_photo)]


def gray_pictures(pictures: list[Picture]) -> list[Picture]:
    """What the pictures' black-and-white photos would be."""
    return [replace(picture, gray=True) for picture in pictures]


def pixels(pictures: list[Picture]) -> Tensor:
    """uint8 (N, 3, side, side)."""
    return torch.stack([picture.pixels() for picture in pictures])


@lru_cache(maxsize=2)
def open_rgb(file: Path) -> Image.Image:
    """The photo as the core reads it, in 8 bits. Raises ColorFluxError when it cannot be read."""
    return eight_bit(load_photo(file).pixels)


def eight_bit(pixels: Tensor) -> Image.Image:
    """A PIL image of uint8 or uint16 (3, H, W)."""
    deep = pixels.dtype == torch.uint16
    samples = pixels.permute(1, 2, 0).numpy()
    return Image.fromarray((samples >> 8).astype(np.uint8) if deep else samples)


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


def to_uint8(image: Image.Image) -> Tensor:
    """A PIL image as a uint8 tensor (3, H, W)."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def gray(pictures: Tensor) -> Tensor:
    """The grayscale of uint8 pictures (..., 3, H, W), as uint8: what an 8-bit scan would hold."""
    return (grayscale(unit_range(pictures)) * 255).round().byte()


def digest(*contents: Any) -> str:
    """A hash of bytes-like objects."""
    blake = hashlib.blake2b(digest_size=16)
    for content in contents:
        blake.update(content)
    return blake.hexdigest()
