"""The manifest: a CSV file that lists the training photos.

The columns ``file`` and ``split`` are required; ``split`` is "train" or "validation" (for sample
sheets), and each needs at least one photo. A column named after a stage holds "yes" for every
photo that the stage may use. The optional column ``hash`` holds the photos' content digests, which
are otherwise computed from the files. ``training.prepare`` writes all of these columns.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

from colorflux_core.digest import digest
from colorflux_core.errors import ColorFluxError


@dataclass(frozen=True)
class ManifestPhoto:
    """A photo of the manifest; ``content`` is the digest of its content."""

    file: Path
    content: str


def manifest_rows(manifest: Path) -> list[dict[str, str]]:
    """All rows of a manifest. Raises ColorFluxError if the file or a column is missing."""
    try:
        with manifest.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
    except OSError as error:
        raise ColorFluxError(f"cannot read --manifest {manifest}: {error.strerror}") from error
    if not rows or not {"file", "split"} <= rows[0].keys():
        raise ColorFluxError(f"--manifest {manifest} needs the columns 'file' and 'split'")
    return rows


def read_manifest(manifest: Path, folder: Path, split: str, stage: str = "") -> list[ManifestPhoto]:
    """The photos of one split that ``stage`` may use, in the manifest's order.

    Raises ColorFluxError if the manifest, one of its columns or one of its photos is missing.
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
            f"{len(missing)} photos of --manifest {manifest} are not in --photos {folder};"
            f" the first is {missing[0].name}"
        )
    return [
        ManifestPhoto(file, row.get("hash") or digest(file.read_bytes()))
        for file, row in zip(files, rows, strict=True)
    ]
