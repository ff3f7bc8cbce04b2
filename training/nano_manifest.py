"""Nano's photo sets as one manifest: ``python -m training.nano_manifest FOLDER -o photos.csv``.

FOLDER holds ``photos/train.csv`` and ``photos2/photos2.csv`` with their photos. The split is by
source (package or repository): photos of one source often look alike. A photo of the training split
that repeats one of another split, or of its own, is left out.

The column ``times`` says how often a pass shows a photo: people more often, tight studio faces and
single objects less.
"""

from __future__ import annotations

import argparse
import csv
import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from .config import run
from .duplicates import first_alike, hash_words
from .photo_check import LOOKS_SIDE, Measurement, measure_all
from .photo_choice import Filters
from .photo_files import PhotoFile
from .prepare import write_csv

TEST_SOURCES = {
    "github:openstax/osbooks-writing-guide",
    "github:openstax/osbooks-principles-economics-bundle",
    "github:openstax/osbooks-american-government",
    "github:zzowenzz/COCO_Tiny",
    "github:codrops/ScrollAnimationsGrid",
    "github:getkirby/starterkit",
}
VALIDATION_SOURCES = {
    "github:codrops/MenuFullGrid",
    "github:openstax/osbooks-entrepreneurship",
}
TIMES = {"people": 3, "face": 1, "object": 1, "food": 1, "texture": 1}
OTHERWISE = 2
SPLITS = ("test", "test_packages", "validation", "train")
"""In the order in which a picture that comes twice is kept. ``test_packages`` is the test split of
the first nano, by photo."""

COLUMNS = (
    "file",
    "split",
    "times",
    "category",
    "people",
    "source",
    "licence",
    "width",
    "height",
    "colorfulness",
    "saturation",
    "value",
    "hash",
)


@dataclass(frozen=True)
class Listed:
    """A photo as its set's CSV has it; ``file`` is relative to the folder of both sets."""

    file: str
    split: str
    category: str
    people: bool
    source: str
    licence: str


def listed(folder: Path, packages: Path) -> list[Listed]:
    """The photos of both sets; ``packages`` is the manifest that splits the first."""
    photos = [
        Listed(
            f"photos/train/{row['file']}",
            row["split"].replace("test", "test_packages"),
            row["category"],
            row["category"] == "people",
            row["package"],
            row["licence"],
        )
        for row in csv_rows(packages)
    ]
    photos += [
        Listed(
            f"photos2/photos/{row['file']}",
            split_of(row["source"]),
            row["category"],
            row["people"] == "1",
            row["source"],
            row["licence"],
        )
        for row in csv_rows(folder / "photos2" / "photos2.csv")
    ]
    return sorted(photos, key=lambda photo: SPLITS.index(photo.split))


def split_of(source: str) -> str:
    if source in TEST_SOURCES:
        return "test"
    return "validation" if source in VALIDATION_SOURCES else "train"


def csv_rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def measured(folder: Path, output: Path, photos: list[Listed], workers: int) -> list[Measurement]:
    files = []
    for photo in photos:
        stat = (folder / photo.file).stat()
        name = Path(os.path.relpath(folder / photo.file, output)).as_posix()
        files.append(PhotoFile(name, stat.st_size, stat.st_mtime_ns))
    return measure_all(output, files, workers)


def manifest(photos: list[Listed], measurements: list[Measurement]) -> list[dict[str, object]]:
    """One row for each photo that repeats none before it."""
    words = hash_words([measurement.looks for measurement in measurements], LOOKS_SIDE**2)
    alike = first_alike(words, Filters().duplicate_distance)
    return [
        vars(photo)
        | {
            "people": "yes" if photo.people else "no",
            "times": TIMES.get(photo.category, OTHERWISE),
            "width": measurement.width,
            "height": measurement.height,
            "colorfulness": measurement.colorfulness,
            "saturation": measurement.saturation,
            "value": measurement.value,
            "hash": measurement.content,
        }
        for index, (photo, measurement) in enumerate(zip(photos, measurements, strict=True))
        if alike[index] == index
    ]


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="training.nano_manifest", description=__doc__)
    parser.add_argument("folder", type=Path, help="folder of both sets")
    parser.add_argument("-o", "--output", type=Path, required=True, help="the manifest")
    parser.add_argument("--packages", type=Path, default=Path("models/nano/photos.csv"))
    parser.add_argument("--workers", type=int, default=0)
    arguments = parser.parse_args(argv)
    photos = listed(arguments.folder, arguments.packages)
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    output = arguments.output.parent.resolve()
    measurements = measured(arguments.folder, output, photos, arguments.workers)
    rows = manifest(photos, measurements)
    write_csv(arguments.output, COLUMNS, rows)
    counts = Counter((row["split"], row["people"]) for row in rows)
    for split in SPLITS:
        print(f"{split}: {counts[split, 'yes']} with people, {counts[split, 'no']} others")
    print(f"{len(photos) - len(rows)} repetitions left out")


if __name__ == "__main__":
    run(main)
