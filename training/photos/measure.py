"""What a photo is measured by before it may train, each photo once however often a run is stopped.

A photo is read as colorflux_core reads it (upright, in sRGB, on white) and measured at
``MEASURED_SIDE`` pixels: a fraction of the work, and the mean S and V of HSV stay within 0.003 on
average of what they are at full size. Photos above the core's MAX_MEGAPIXELS are not read.
"""

from __future__ import annotations

import json
import logging
import os
import warnings
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import imagehash
import numpy as np
from PIL import Image
from torch.utils.data import Dataset
from tqdm import tqdm

from colorflux_core.digest import sha256
from colorflux_core.errors import ColorFluxError
from colorflux_core.loading import load
from colorflux_core.photos.color import colorfulness, hsv_statistics, unit_range
from colorflux_core.photos.images import eight_bit, to_uint8
from colorflux_core.photos.photo import Photo, load_photo

from .files import PhotoFile

MEASURED_SIDE = 512
"""Longest side in pixels at which colors and looks are measured."""

LOOKS_SIDE = 16
"""The perceptual hash says of this many times this many frequencies how strong they are."""

JOURNAL = "measurements.jsonl"


@dataclass(frozen=True)
class Measurement:
    """What is known of one photo; of one with a ``fault``, which cannot be read, nothing else.

    Attributes:
        width, height: of the upright photo, in pixels.
        colorfulness: Hasler and Suesstrunk's, from 0.
        saturation, value: means of HSV's S and V, in [0, 1].
        content: SHA-256 of the pixels at full size, hexadecimal.
        looks: perceptual hash of LOOKS_SIDE^2 bits, hexadecimal; blind to color.
    """

    photo: PhotoFile
    fault: str = ""
    width: int = 0
    height: int = 0
    colorfulness: float = 0.0
    saturation: float = 0.0
    value: float = 0.0
    content: str = ""
    looks: str = ""

    @property
    def file(self) -> str:
        return self.photo.file


def measure(folder: Path, photo: PhotoFile) -> Measurement:
    """Measure a photo whose name starts from ``folder``."""
    path = folder / photo.file
    try:
        loaded = load_photo(path)
    except ColorFluxError as error:
        fault, _, _advice = str(error).removeprefix(f"{path} ").partition(": ")
        return Measurement(photo, fault)
    height, width = loaded.size
    small = picture(loaded, MEASURED_SIDE)
    rgb = unit_range(to_uint8(small))
    statistics = hsv_statistics(rgb)
    return Measurement(
        photo,
        width=width,
        height=height,
        colorfulness=round(float(colorfulness(rgb)), 2),
        saturation=round(float(statistics.saturation), 4),
        value=round(float(statistics.value), 4),
        content=content(loaded),
        looks=str(imagehash.phash(small, LOOKS_SIDE)),
    )


def picture(photo: Photo, side: int) -> Image.Image:
    """The photo in 8 bits, made smaller where its longest side is above ``side``."""
    image = eight_bit(photo.pixels)
    image.thumbnail((side, side))
    return image


def content(photo: Photo) -> str:
    """The same for the same pixels, whatever the file around them."""
    samples = photo.pixels.permute(1, 2, 0).numpy()
    return sha256(str(samples.shape).encode(), np.ascontiguousarray(samples).data)


@dataclass(frozen=True)
class Measuring(Dataset[Measurement]):
    """Photos that are measured when they are asked for, by the workers of a DataLoader."""

    folder: Path
    photos: list[PhotoFile]

    def __len__(self) -> int:
        return len(self.photos)

    def __getitem__(self, index: int) -> Measurement:
        return measure(self.folder, self.photos[index])


def measure_all(folder: Path, photos: list[PhotoFile], workers: int) -> list[Measurement]:
    """The photos' measurements, in their order, from the journal in ``folder`` as far as it goes.

    Each new one is in the journal before the next is waited for.

    Args:
        folder: Of the manifest, where names start.
        photos: Without repetitions.
        workers: Processes; 0 takes one per CPU core.

    Raises:
        ColorFluxError: when a worker was killed.
        OSError: when the journal cannot be read or written.
    """
    known = {measurement.photo: measurement for measurement in read_journal(folder / JOURNAL)}
    new = [photo for photo in photos if photo not in known]
    with (
        (folder / JOURNAL).open("a", encoding="utf-8") as journal,
        # None shows the bar on terminals only.
        tqdm(total=len(photos), initial=len(photos) - len(new), unit="photo", disable=None) as bar,
    ):
        journal.write("\n")  # ends a line that a kill cut short
        for measurement in measured(Measuring(folder, new), workers):
            journal.write(json.dumps(asdict(measurement)) + "\n")
            journal.flush()
            known[measurement.photo] = measurement
            bar.update()
    return [known[photo] for photo in photos]


def measured(measuring: Measuring, workers: int) -> Iterator[Measurement]:
    if not measuring.photos:
        return
    workers = min(workers or os.cpu_count() or 1, len(measuring.photos))
    yield from load(measuring, workers, batch_size=None, on_start=be_quiet)


def be_quiet() -> None:
    """Silence Pillow's warnings on odd files: there are hundreds, and users cannot act on them."""
    warnings.simplefilter("ignore")
    logging.disable()


def read_journal(journal: Path) -> Iterator[Measurement]:
    """What earlier runs measured; lines that are not whole are passed over."""
    if not journal.exists():
        return
    with journal.open(encoding="utf-8", errors="replace") as lines:
        for line in lines:
            try:
                fields = json.loads(line)
                yield Measurement(PhotoFile(**fields.pop("photo")), **fields)
            except (ValueError, TypeError, KeyError, AttributeError):
                continue
