"""Measures photos: size, colors, content digest and perceptual hash; results go to a journal.

A photo is read by colorflux_core (upright, in sRGB, on white) and measured at ``MEASURED_SIDE``
pixels. This is much faster, and on average changes the mean S and V of HSV by less than 0.003.
Photos above the core's MAX_MEGAPIXELS are not read. An interrupted run continues from its journal.
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
"""Longest side in pixels at which colors and the perceptual hash are computed."""

PHASH_SIZE = 16
"""Side of the perceptual hash: it has PHASH_SIZE^2 bits, one for each low DCT frequency."""

JOURNAL = "measurements.jsonl"


@dataclass(frozen=True)
class Measurement:
    """The measurements of one photo.

    Attributes:
        photo: The measured file.
        fault: Why the photo cannot be read; the other fields are then unset.
        width, height: Of the upright photo, in pixels.
        colorfulness: Hasler and Suesstrunk's, from 0.
        saturation, value: Means of HSV's S and V, in [0, 1].
        content: SHA-256 of the pixels at full size, hexadecimal.
        looks: Perceptual hash of PHASH_SIZE^2 bits, hexadecimal; independent of color.
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
    """Measure a photo whose name is relative to ``folder``."""
    path = folder / photo.file
    try:
        loaded = load_photo(path)
    except ColorFluxError as error:
        fault, _, _fix = str(error).removeprefix(f"{path} ").partition(": ")
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
        looks=str(imagehash.phash(small, PHASH_SIZE)),
    )


def picture(photo: Photo, side: int) -> Image.Image:
    """The photo in 8 bits, reduced if its longest side exceeds ``side``."""
    image = eight_bit(photo.pixels)
    image.thumbnail((side, side))
    return image


def content(photo: Photo) -> str:
    """A digest of the pixels, independent of file format and metadata."""
    samples = photo.pixels.permute(1, 2, 0).numpy()
    return sha256(str(samples.shape).encode(), np.ascontiguousarray(samples).data)


@dataclass(frozen=True)
class MeasurementDataset(Dataset[Measurement]):
    """Photos that are measured on access, by the workers of a DataLoader."""

    folder: Path
    photos: list[PhotoFile]

    def __len__(self) -> int:
        return len(self.photos)

    def __getitem__(self, index: int) -> Measurement:
        return measure(self.folder, self.photos[index])


def measure_all(folder: Path, photos: list[PhotoFile], workers: int) -> list[Measurement]:
    """Measure the photos that are not yet in the journal in ``folder``.

    Every new measurement is written to the journal at once.

    Args:
        folder: The manifest's folder, which file names are relative to.
        photos: Without repetitions.
        workers: Number of processes; 0 is one per CPU core.

    Returns:
        The measurements in the order of ``photos``.

    Raises:
        ColorFluxError: if a worker was killed.
        OSError: if the journal cannot be read or written.
    """
    known = {measurement.photo: measurement for measurement in read_journal(folder / JOURNAL)}
    new = [photo for photo in photos if photo not in known]
    with (
        (folder / JOURNAL).open("a", encoding="utf-8") as journal,
        # disable=None shows the bar on terminals only.
        tqdm(total=len(photos), initial=len(photos) - len(new), unit="photo", disable=None) as bar,
    ):
        journal.write("\n")  # End a line that an interrupted run left incomplete.
        for measurement in iter_measurements(MeasurementDataset(folder, new), workers):
            journal.write(json.dumps(asdict(measurement)) + "\n")
            journal.flush()
            known[measurement.photo] = measurement
            bar.update()
    return [known[photo] for photo in photos]


def iter_measurements(dataset: MeasurementDataset, workers: int) -> Iterator[Measurement]:
    """Measure the dataset's photos in worker processes."""
    if not dataset.photos:
        return
    workers = min(workers or os.cpu_count() or 1, len(dataset.photos))
    yield from load(dataset, workers, batch_size=None, on_start=silence_warnings)


def silence_warnings() -> None:
    """Silence Pillow's warnings about unusual files, which users cannot act on."""
    warnings.simplefilter("ignore")
    logging.disable()


def read_journal(journal: Path) -> Iterator[Measurement]:
    """The measurements of earlier runs; incomplete lines are skipped."""
    if not journal.exists():
        return
    with journal.open(encoding="utf-8", errors="replace") as lines:
        for line in lines:
            try:
                fields = json.loads(line)
                yield Measurement(PhotoFile(**fields.pop("photo")), **fields)
            except (ValueError, TypeError, KeyError, AttributeError):
                continue
