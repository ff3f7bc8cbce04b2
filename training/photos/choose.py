"""Which measured photos may train, in which stages, and which of them are kept for validation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from colorflux_core.options import setting

from ..config import DATA
from ..data.limits import PhotoLimits
from .duplicates import first_alike, hash_words
from .measure import LOOKS_SIDE, Measurement

STAGES = ("structure", "basic_color", "pro_dpo")

LEAST_VALIDATION = 8
"""Photos of each stage that are kept for validation, unless that is more than a fifth of it."""


@dataclass
class Filters(PhotoLimits):
    """The paper's filters (7.1 to 7.3), and what else makes a photo unusable."""

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
        f"fraction of the photos kept for validation; at least {LEAST_VALIDATION} for each stage",
        low=0,
        high=0.9,
        group=DATA,
    )


@dataclass(frozen=True)
class Accepted:
    """A photo of the manifest; ``left_out`` says why a stage does not use it, "" where it does."""

    measured: Measurement
    split: str
    left_out: dict[str, str]

    @property
    def file(self) -> str:
        return self.measured.file


@dataclass(frozen=True)
class Rejected:
    """A file that is not in the manifest.

    Attributes:
        reason: of a few kinds, to be counted.
        detail: what is particular to this file.
        pictures: the files that show why, if any do.
    """

    file: str
    reason: str
    detail: str = ""
    pictures: tuple[str, ...] = ()


def choose(
    measurements: list[Measurement], filters: Filters
) -> tuple[list[Accepted], list[Rejected]]:
    """Sort photos into those that train and those that do not, both in the order given.

    Of photos that show the same picture one is kept: one with color before one without, then the
    one of the most pixels, of the most bytes, and the first by name.
    """
    rejected = {m: fault for m in measurements if (fault := unusable(m, filters))}
    rejected |= repetitions([m for m in measurements if m not in rejected], filters)
    left_out = {m: reasons_to_leave_out(m, filters) for m in measurements if m not in rejected}
    validation = validation_photos(left_out, filters.validation)
    accepted = [
        Accepted(m, "validation" if m in validation else "train", reasons)
        for m, reasons in left_out.items()
    ]
    return accepted, [rejected[m] for m in measurements if m in rejected]


def unusable(measured: Measurement, filters: Filters) -> Rejected | None:
    """Why no stage can use a photo, whatever the others are."""
    if measured.fault:
        return Rejected(measured.file, "cannot be read", measured.fault)
    if min(measured.width, measured.height) < filters.min_side:
        size = f"{measured.width}x{measured.height}"
        reason = f"a side below {filters.min_side} pixels"
        return Rejected(measured.file, reason, size, (measured.file,))
    return None


def repetitions(photos: list[Measurement], filters: Filters) -> dict[Measurement, Rejected]:
    """The photos that show the same picture as one that is preferred to them."""

    def preference(photo: Measurement) -> tuple[bool, int, int, str]:
        is_gray = photo.colorfulness < filters.min_colorfulness
        return is_gray, -photo.width * photo.height, -photo.photo.size, photo.file

    def repetition(photo: Measurement, first: Measurement, reason: str) -> Rejected:
        return Rejected(photo.file, reason, first.file, (photo.file, first.file))

    repeated: dict[Measurement, Rejected] = {}
    firsts: dict[str, Measurement] = {}
    for photo in sorted(photos, key=preference):
        first = firsts.setdefault(photo.content, photo)
        if first is not photo:
            repeated[photo] = repetition(photo, first, "the same pixels as another")
    distinct = list(firsts.values())
    words = hash_words([photo.looks for photo in distinct], LOOKS_SIDE**2)
    for index, alike in enumerate(first_alike(words, filters.duplicate_distance)):
        if index != alike:
            photo, first = distinct[index], distinct[alike]
            repeated[photo] = repetition(photo, first, "the same picture as another")
    return repeated


def reasons_to_leave_out(measured: Measurement, filters: Filters) -> dict[str, str]:
    """For each stage the first reason not to use a photo, "" where there is none."""
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
    left_out: Mapping[Measurement, Mapping[str, str]], share: float
) -> set[Measurement]:
    """The photos whose content hashes are below ``share``, and each stage's lowest ones.

    So when photos are added, none that has trained becomes a validation photo, once a stage has
    40 of them; and one returns to training only where its stage had too few for validation.
    """
    by_hash = sorted(left_out, key=lambda photo: photo.content)
    chosen = {photo for photo in by_hash if int(photo.content[:8], 16) < share * 2**32}
    for stage in STAGES:
        usable = [photo for photo in by_hash if not left_out[photo][stage]]
        chosen.update(usable[: min(LEAST_VALIDATION, len(usable) // 5)])
    return chosen
