"""Measure and filter photos, and write the manifest that all training stages read.

The paper uses two sets of photos: LSDIR and the first 10,000 photos of FFHQ for the first two
stages (7.1, 7.2), DIV2K and Flickr2K for Pro-DPO (7.3):

  python -m training.prepare LSDIR FFHQ=10000 -o data/base
  python -m training.prepare DIV2K_train_HR Flickr2K_HR -o data/fine

The output folder contains

  photos.csv          the manifest: every accepted photo with its split, its measurements, and yes
                      or no for each stage; pass it to training as --manifest data/base/photos.csv
  rejected.csv        every other file with the reason: broken, too small, the same picture as
                      another, not a photo
  contact-sheet.jpg   examples for each stage and for each reason to exclude photos
  measurements.jsonl  the measurements of all photos; a later run, after an interruption or with
                      other settings or more photos, measures only new and changed files

Photos are JPEG, PNG, TIFF and WebP files in the folders and their subfolders.
"""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from colorflux_core.cli.flags import Parser, add_settings, given
from colorflux_core.errors import ColorFluxError
from colorflux_core.files import atomic_write
from colorflux_core.options import setting
from colorflux_core.photos.color import unit_range
from colorflux_core.photos.images import to_uint8
from colorflux_core.photos.photo import save_photo

from .config import MEMORY, REPEAT
from .launch import run_command
from .photos.choose import STAGES, Accepted, Filters, Rejected, choose
from .photos.files import list_files
from .photos.measure import JOURNAL, measure_all
from .photos.sheet import COLUMNS, contact_sheet

MANIFEST, REJECTED, SHEET = "photos.csv", "rejected.csv", "contact-sheet.jpg"
Groups = dict[str, list[tuple[str, ...]]]
"""Label -> for each of its photos, the files that illustrate it (possibly none)."""


@dataclass
class PrepareConfig(Filters):
    workers: int = setting(
        0, "processes that measure photos; 0 uses one per CPU core", low=0, group=MEMORY
    )


def prepare(folders: Sequence[str], output: Path, config: PrepareConfig) -> None:
    """Measure the photos in ``folders`` (FOLDER or FOLDER=COUNT) and write the output files.

    Raises:
        ColorFluxError: if a folder has no photos, or no photo can be used.
        OSError: if a folder cannot be read or the output cannot be written.
    """
    # Find, measure and choose photos.
    output.mkdir(parents=True, exist_ok=True)
    output = output.resolve()
    found = list_files(folders, output, {MANIFEST, REJECTED, SHEET, JOURNAL})
    accepted, rejected = choose(measure_all(output, found.photos, config.workers), config)
    rejected += [Rejected(file, "not a photo", why) for file, why in found.others.items()]

    # Write rejected.csv, the contact sheet and, last, the manifest.
    write_csv(output / REJECTED, ("file", "reason", "detail"), map(vars, rejected))
    if not accepted:
        raise ColorFluxError(f"no photo can be used: see {output / REJECTED} for the reasons")
    groups = grouped(accepted, rejected)
    samples = {f"{label}: {len(group)}": sample(group, output) for label, group in groups.items()}
    sheet = contact_sheet({label: files for label, files in samples.items() if files})
    save_photo(output / SHEET, unit_range(to_uint8(sheet)))
    manifest = [manifest_row(photo) for photo in accepted]
    write_csv(output / MANIFEST, tuple(manifest[0]), manifest)
    splits = Counter(photo.split for photo in accepted)
    print(f"{len(accepted)} photos: {splits['train']} train, {splits['validation']} validation")
    print("\n".join(f"{len(group):8}  {label}" for label, group in groups.items()))


def write_csv(path: Path, columns: Sequence[str], rows: Iterable[Mapping[str, object]]) -> None:
    """Write a CSV file atomically. Bytes of a file name that are not UTF-8 are escaped."""
    with (
        atomic_write(path) as unfinished,
        unfinished.open("w", newline="", encoding="utf-8", errors="backslashreplace") as file,
    ):
        writer = csv.DictWriter(file, columns, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def manifest_row(photo: Accepted) -> dict[str, object]:
    return {
        "file": photo.file,
        "split": photo.split,
        "width": photo.measured.width,
        "height": photo.measured.height,
        "colorfulness": photo.measured.colorfulness,
        "saturation": photo.measured.saturation,
        "value": photo.measured.value,
        "hash": photo.measured.content,
        **{stage: "no" if photo.exclusions[stage] else "yes" for stage in STAGES},
    }


def grouped(accepted: Iterable[Accepted], rejected: Iterable[Rejected]) -> Groups:
    """Group photos by the stage that uses them, by the reason for exclusion, or for rejection."""
    groups: Groups = {}
    for stage in STAGES:
        groups[stage] = []
        for photo in accepted:
            reason = photo.exclusions[stage]
            label = f"not for {stage}: {reason}" if reason else stage
            groups.setdefault(label, []).append((photo.file,))
    for rejection in rejected:
        groups.setdefault(f"rejected: {rejection.reason}", []).append(rejection.pictures)
    return groups


def sample(group: list[tuple[str, ...]], output: Path) -> list[Path]:
    """The files of up to COLUMNS photos, evenly spaced in the group."""
    step = -(-len(group) // COLUMNS)
    return [output / file for files in group[::step] for file in files]


def parse(argv: list[str]) -> tuple[list[str], Path, PrepareConfig]:
    """Folders, output and settings. Raises ColorFluxError if they are invalid."""
    parser = Parser(
        "prepare",
        "FOLDER[=COUNT]... -o OUTPUT [--SETTING VALUE]...",
        __doc__,
        REPEAT,
        package="training",
    )
    parser.add_argument(
        "folders",
        nargs="+",
        metavar="FOLDER[=COUNT]",
        help="folder of photos; with =COUNT, only the first COUNT by name",
    )
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        required=True,
        metavar="OUTPUT",
        help="folder for the manifest; it may be FOLDER itself or inside it",
    )
    add_settings(parser, PrepareConfig)
    args = parser.parse_args(argv)
    return args.folders, args.output, PrepareConfig(**given(args, PrepareConfig))


def main(argv: list[str]) -> None:
    folders, output, config = parse(argv)
    try:
        prepare(folders, output, config)
    except OSError as error:
        raise ColorFluxError(f"{error.filename or output}: {error.strerror or error}") from error


if __name__ == "__main__":
    run_command(main)
