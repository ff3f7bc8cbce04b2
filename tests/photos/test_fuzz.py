"""Whatever a damaged file does, reading it gives a photo or one error line."""

from __future__ import annotations

import io
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pytest
import tifffile
import torch
from PIL import ExifTags, Image

from colorflux_core.errors import ColorFluxError
from colorflux_core.photos.photo import PHOTO_SUFFIXES, load_photo, save_photo
from colorflux_core.photos.profiles import srgb_profile
from colorflux_core.photos.xmp import Provenance

FILES = 1500
SIDE = 24
MADE = Provenance("colorized", "a model", "seed: 1", "2026-01-01T00:00:00+00:00")


def seeds() -> Iterator[tuple[str, bytes]]:
    """Small sound files of all formats, with all metadata."""
    samples = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), np.uint8)
    exif = Image.Exif()
    exif[ExifTags.Base.Artist] = "Ansel Adams"
    exif[ExifTags.Base.Orientation] = 6
    exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.DateTimeOriginal] = "1931:05:01 12:00:00"
    exif.get_ifd(ExifTags.IFD.GPSInfo)[ExifTags.GPS.GPSLatitudeRef] = "N"
    known: dict[str, Any] = {"exif": exif.tobytes(), "icc_profile": srgb_profile()}
    for mode, kind in (
        *(("RGB", kind) for kind in ("JPEG", "PNG", "TIFF", "WEBP", "GIF", "BMP", "AVIF")),
        *(("L", "JPEG"), ("P", "PNG"), ("P", "TIFF"), ("CMYK", "JPEG"), ("1", "TIFF")),
    ):
        file = io.BytesIO()
        Image.fromarray(samples).convert(mode).save(
            file, kind, **({} if kind in ("GIF", "BMP") else known), **{"dpi": (300, 300)}
        )
        yield f"{mode} {kind}", file.getvalue()
    file = io.BytesIO()
    Image.fromarray(samples).save(file, "JPEG", progressive=True, dpi=(300, 300))
    yield "progressive", file.getvalue()
    deep = samples.astype(np.uint16) * 257
    yield "deep PNG", bytes(imagecodecs.png_encode(deep))
    for options in (
        {"compression": "lzw", "predictor": 2},
        {"compression": "zlib", "planarconfig": "separate"},
        {"compression": "packbits", "tile": (16, 16)},
        {"compression": "jpeg"},
        {},
    ):
        file = io.BytesIO()
        data = samples if options.get("compression") == "jpeg" else deep
        if "planarconfig" in options:
            data = np.moveaxis(data, -1, 0).copy()
        tifffile.imwrite(file, data, photometric="rgb", metadata=None, **options)
        yield f"TIFF {options}", file.getvalue()


def damaged(data: bytes, rng: random.Random) -> bytes:
    """Bytes changed, mostly near the beginning, or cut off, doubled or left out."""
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 5, 20))):
        reach = rng.choice((64, 400, len(changed)))
        at = rng.randrange(min(reach, len(changed)))
        if rng.random() < 0.3:
            at = len(changed) - 1 - at
        changed[at] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, changed[at] ^ 1 << rng.randrange(8)))
    if rng.random() < 0.2:
        start = rng.randrange(len(changed))
        del changed[start : start + rng.choice((1, 7, 100, len(changed)))]
    return bytes(changed)


@pytest.mark.filterwarnings("ignore")
def test_damaged_files_cost_one_line(tmp_path: Path) -> None:
    rng = random.Random(0)
    sound = list(seeds())
    read = 0
    for number in range(FILES):
        kind, data = sound[number % len(sound)]
        path = tmp_path / "scan"
        path.write_bytes(damaged(data, rng))
        try:
            photo = load_photo(path, max_megapixels=0.1)
            if number % 10 == 0:
                suffix = rng.choice(sorted(PHOTO_SUFFIXES))
                save_photo(tmp_path / f"out{suffix}", photo.rgb, photo, provenance=MADE)
            read += 1
        except ColorFluxError as error:
            assert "\n" not in str(error), kind
            assert str(tmp_path) in str(error)
        except Exception as error:
            raise AssertionError(f"{kind}, file {number}: {error!r}") from error
    assert FILES / 10 < read < FILES * 0.95


def test_the_files_are_sound_before(tmp_path: Path) -> None:
    for kind, data in seeds():
        path = tmp_path / "scan"
        path.write_bytes(data)
        photo = load_photo(path)
        assert photo.size == (SIDE, SIDE), kind
        assert torch.isfinite(photo.rgb).all()
