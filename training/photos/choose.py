"""Chooses the training and validation photos of each stage from measured photos."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from colorflux_core.options import setting

from ..config import DATA
from ..data.limits import PhotoLimits
from .duplicates import first_duplicates, hash_words
from .measure import PHASH_SIZE, Measurement

STAGES = ("structure", "basic_color", "pro_dpo")

LEAST_VALIDATION = 8
"""Minimum number of validation photos per stage, but at most a fifth of the stage's photos."""


@dataclass
class Filters(PhotoLimits):
    """The paper's filters (7.1 to 7.3), plus minimum size and duplicates."""

    min_side: int = setting(
        256,
        "reject photos whose shorter side has fewer pixels. Stages enlarge small photos to their"
        " --canvas, and blurred ones teach blur: half the canvas, 512 for 1024, is safe",
        group=DATA,
    )
    duplicate_distance: int = setting(
        24,
        "reject a photo whose perceptual hash differs from another's in at most this many of 256"
        " bits: re-encoded or resized copies differ in about 0 to 16, different photos in 80 and"
        " more; -1 rejects only copies with the same pixels",
        low=-1,
        high=256,
        group=DATA,
    )
    validation: float = setting(
        0.02,
        "fraction of the photos kept for validation; at least"
        f" {LEAST_VALIDATION} for each stage, or a fifth of its photos if that is fewer",
        low=0,
        high=0.9,
        group=DATA,
    )


@dataclass(frozen=True)
class Accepted:
    """A photo of the manifest.

    Attributes:
        measured: Its measurement.
        split: train or validation.
        exclusions: Per stage, the reason not to use the photo; "" if the stage uses it.
    """

    measured: Measurement
    split: str
    exclusions: dict[str, str]

    @property
    def file(self) -> str:
        return self.measured.file


@dataclass(frozen=True)
class Rejected:
    """A file that is not in the manifest.

    Attributes:
        file: Relative to the manifest's folder.
        reason: One of a few reasons, by which files are counted.
        detail: Specific to this file.
        pictures: Photos for the contact sheet that show the reason, if any.
    """

    file: str
    reason: str
    detail: str = ""
    pictures: tuple[str, ...] = ()


def choose(
    measurements: list[Measurement], filters: Filters
) -> tuple[list[Accepted], list[Rejected]]:
    """Split photos into accepted and rejected ones, both in the given order.

    Of duplicates one is kept: color before gray, then the most pixels, the largest file, and the
    first by name.
    """
    rejected = {m: fault for m in measurements if (fault := rejection_reason(m, filters))}
    rejected |= find_duplicates([m for m in measurements if m not in rejected], filters)
    exclusions = {m: exclusion_reasons(m, filters) for m in measurements if m not in rejected}
    validation = validation_photos(exclusions, filters.validation)
    accepted = [
        Accepted(m, "validation" if m in validation else "train", reasons)
        for m, reasons in exclusions.items()
    ]
    return accepted, [rejected[m] for m in measurements if m in rejected]


def rejection_reason(measured: Measurement, filters: Filters) -> Rejected | None:
    """Why no stage can use a photo, regardless of the other photos; None if one can."""
    if measured.fault:
        return Rejected(measured.file, "cannot be read", measured.fault)
    if min(measured.width, measured.height) < filters.min_side:
        size = f"{measured.width}x{measured.height}"
        reason = f"a side below {filters.min_side} pixels"
        return Rejected(measured.file, reason, size, (measured.file,))
    return None


def find_duplicates(photos: list[Measurement], filters: Filters) -> dict[Measurement, Rejected]:
    """The photos that duplicate a preferred one, by their pixels or by their perceptual hash."""

    def preference(photo: Measurement) -> tuple[bool, int, int, str]:
        is_gray = photo.colorfulness < filters.min_colorfulness
        return is_gray, -photo.width * photo.height, -photo.photo.size, photo.file

    def duplicate_of(photo: Measurement, first: Measurement, reason: str) -> Rejected:
        return Rejected(photo.file, reason, first.file, (photo.file, first.file))

    duplicates: dict[Measurement, Rejected] = {}
    firsts: dict[str, Measurement] = {}
    for photo in sorted(photos, key=preference):
        first = firsts.setdefault(photo.content, photo)
        if first is not photo:
            duplicates[photo] = duplicate_of(photo, first, "the same pixels as another")
    distinct = list(firsts.values())
    words = hash_words([photo.looks for photo in distinct], PHASH_SIZE**2)
    for index, original in enumerate(first_duplicates(words, filters.duplicate_distance)):
        if index != original:
            photo, first = distinct[index], distinct[original]
            duplicates[photo] = duplicate_of(photo, first, "the same picture as another")
    return duplicates


def exclusion_reasons(measured: Measurement, filters: Filters) -> dict[str, str]:
    """For each stage the first reason not to use a photo; "" if there is none."""
    saturation, value = measured.saturation, measured.value
    colorless = ""
    if measured.colorfulness < filters.min_colorfulness:
        colorless = f"colorfulness below {filters.min_colorfulness:g}"
    exposure = {
        f"saturation below {filters.min_saturation:g}": saturation < filters.min_saturation,
        f"saturation above {filters.max_saturation:g}": saturation > filters.max_saturation,
        f"value below {filters.min_value:g}": value < filters.min_value,
        f"value above {filters.max_value:g}": value > filters.max_value,
    }
    ill_exposed = next((reason for reason, holds in exposure.items() if holds), "")
    return dict(zip(STAGES, ("", colorless, colorless or ill_exposed), strict=True))


def validation_photos(
    exclusions: Mapping[Measurement, Mapping[str, str]], share: float
) -> set[Measurement]:
    """The photos whose content hash is below ``share`` of its range, and each stage's lowest ones.

    Photos thus keep their split when others are added: once a stage has 40 photos, none moves from
    training to validation. A photo moves from validation to training only if it was chosen because
    its stage had too few validation photos.
    """
    by_hash = sorted(exclusions, key=lambda photo: photo.content)
    chosen = {photo for photo in by_hash if int(photo.content[:8], 16) < share * 2**32}
    for stage in STAGES:
        usable = [photo for photo in by_hash if not exclusions[photo][stage]]
        chosen.update(usable[: min(LEAST_VALIDATION, len(usable) // 5)])
    return chosen
