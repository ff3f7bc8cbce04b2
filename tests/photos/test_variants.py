"""TIFF and PNG files of every kind, written by tifffile, read back bit for bit."""

from __future__ import annotations

import itertools
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pytest
import tifffile
import torch
from numpy.typing import NDArray

from colorflux_core.photos.photo import load_photo
from colorflux_core.photos.profiles import srgb_profile

HEIGHT, WIDTH = 13, 22
COMPRESSIONS = ("none", "lzw", "deflate", "packbits", "lzw predicted", "deflate predicted")
CHANNELS = {"gray": 1, "white is zero": 1, "palette": 1, "rgb": 3, "cmyk": 4}

Samples = NDArray[Any]


@dataclass(frozen=True)
class Variant:
    """One way to store a picture."""

    mode: str
    bits: int
    compression: str = "none"
    planar: bool = False
    order: str = "<"
    orientation: int = 1
    tiled: bool = False
    alpha: str = ""
    profile: bool = False

    def __str__(self) -> str:
        names = ("planar" * self.planar, "tiled" * self.tiled, "profile" * self.profile, self.alpha)
        ends = (self.mode, str(self.bits), self.compression, self.order, str(self.orientation))
        return "-".join(filter(None, (*ends, *names))).replace(" ", "_")


def variants() -> list[Variant]:
    found = [
        Variant(mode, bits, compression, planar, order, tiled=tiled)
        for mode, bits, compression, planar, order, tiled in itertools.product(
            ("gray", "white is zero", "rgb", "cmyk"),
            (8, 16),
            COMPRESSIONS,
            (False, True),
            "<>",
            (False, True),
        )
        if not (planar and CHANNELS[mode] == 1) and not (tiled and order == ">")
    ]
    for mode, bits, orientation in itertools.product(
        ("gray", "palette", "rgb", "cmyk"), (8, 16), range(1, 9)
    ):
        if mode != "palette" or bits == 8:
            found.append(Variant(mode, bits, orientation=orientation))
            found.append(Variant(mode, bits, "lzw", orientation=orientation, order=">"))
    found += [Variant("gray", bits) for bits in (1, 2, 4, 6, 10, 12, 14)]
    found.append(Variant("gray", 1, "lzw"))
    found += [Variant("gray", 32, c, order=o) for c in ("none", "deflate") for o in "<>"]
    found += [
        Variant(mode, bits, compression, planar, alpha=alpha)
        for mode, bits, compression, planar, alpha in itertools.product(
            ("gray", "rgb"), (8, 16), ("none", "lzw"), (False, True), ("straight", "extra", "both")
        )
    ]
    found += [Variant("rgb", b, c, profile=True) for b in (8, 16) for c in COMPRESSIONS]
    return list(dict.fromkeys(found))


def stored(variant: Variant) -> Samples:
    """(H, W, channels) as the file holds them."""
    random = np.random.default_rng(variant.bits)
    top = 2**variant.bits
    dtype = np.uint8 if top <= 256 else np.uint16 if top <= 65536 else np.uint32
    extra = {"": 0, "straight": 1, "extra": 1, "both": 2}[variant.alpha]
    shape = (HEIGHT, WIDTH, CHANNELS[variant.mode] + extra)
    return random.integers(0, top, shape, dtype=dtype)


def palette() -> Samples:
    return np.random.default_rng(1).integers(0, 65536, (3, 256), dtype=np.uint16)


def seen(variant: Variant, samples: Samples) -> Samples:
    """What the reader must return, (H, W, 3), computed without it."""
    top = 2**variant.bits - 1
    white = 255 if variant.bits <= 8 else 65535
    values = samples.astype(np.float64)
    color = values[..., : CHANNELS[variant.mode]]
    if variant.mode == "palette":
        color = (palette() >> 8).T[samples[..., 0]].astype(np.float64)
    elif variant.mode == "cmyk":
        light = top - color
        color = light[..., :3] * light[..., 3:] / top
    elif top not in (255, 65535):
        color = np.round(color * white / top)
    if variant.mode == "white is zero":
        color = white - color
    if variant.alpha in ("straight", "both"):
        opacity = values[..., CHANNELS[variant.mode], None] / white
        color = white - (white - color) * opacity
    color = np.broadcast_to(color, (HEIGHT, WIDTH, 3))
    for turn in {
        2: ["h"],
        3: ["h", "v"],
        4: ["v"],
        5: ["t"],
        6: ["t", "h"],
        7: ["t", "h", "v"],
        8: ["t", "v"],
    }.get(variant.orientation, []):
        turned = {"h": color[:, ::-1], "v": color[::-1], "t": color.swapaxes(0, 1)}
        color = turned[turn]
    return color


def write_packed(path: Path, bits: int, samples: Samples) -> None:
    """An uncompressed gray TIFF (H, W) of any number of bits: tifffile cannot pack them."""
    height, width = samples.shape
    digits = samples[..., None] >> np.arange(bits - 1, -1, -1) & 1
    data = np.packbits(digits.reshape(height, -1).astype(np.uint8), axis=1).tobytes()
    tags = {256: width, 257: height, 258: bits, 259: 1, 262: 1, 273: 0, 277: 1, 278: height}
    tags[279] = len(data)
    tags[273] = 8 + 2 + 12 * len(tags) + 4
    entries = [struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items()]
    header = b"II*\0" + struct.pack("<IH", 8, len(tags))
    path.write_bytes(header + b"".join(entries) + bytes(4) + data)


def write(path: Path, variant: Variant, samples: Samples) -> None:
    if variant.bits not in (1, 8, 16, 32):
        write_packed(path, variant.bits, samples[..., 0])
        return
    compression = {"none": None, "deflate": "zlib"}
    name, _, predicted = variant.compression.partition(" ")
    photometric = {"gray": "minisblack", "white is zero": "miniswhite", "cmyk": "separated"}
    extras = {
        "straight": ["unassalpha"],
        "extra": ["unspecified"],
        "both": ["unassalpha", "unspecified"],
    }
    options: dict[str, Any] = {}
    if variant.alpha:
        options["extrasamples"] = extras[variant.alpha]
    if variant.mode == "palette":
        options["colormap"] = palette()
    if variant.tiled:
        options["tile"] = (16, 16)
    if variant.profile:
        options["iccprofile"] = srgb_profile()
    data = samples[..., 0] if samples.shape[-1] == 1 else samples
    planar = variant.planar and data.ndim == 3
    if variant.bits == 1:
        data = data.astype(bool)
    tifffile.imwrite(
        path,
        np.moveaxis(data, -1, 0).copy() if planar else data,
        photometric=photometric.get(variant.mode, variant.mode),
        planarconfig=("separate" if planar else "contig") if data.ndim == 3 else None,
        compression=compression.get(name, name),
        predictor=2 if predicted else None,
        byteorder="<" if variant.order == "<" else ">",
        extratags=[(274, 3, 1, variant.orientation, True)],
        metadata=None,
        **options,
    )


@pytest.mark.parametrize("variant", variants(), ids=str)
def test_a_tiff_is_read_bit_for_bit(tmp_path: Path, variant: Variant) -> None:
    samples = stored(variant)
    write(tmp_path / "scan.tif", variant, samples)
    photo = load_photo(tmp_path / "scan.tif")
    expected = seen(variant, samples)
    assert photo.bit_depth == (8 if variant.bits <= 8 else 16)
    assert photo.is_gray == (CHANNELS[variant.mode] == 1 and variant.mode != "palette")
    pixels = photo.pixels.permute(1, 2, 0).numpy().astype(np.float64)
    assert pixels.shape == expected.shape
    # Products are rounded, by Pillow in 8 bits: all else is exact.
    is_product = variant.mode == "cmyk" or variant.alpha in ("straight", "both")
    assert np.abs(pixels - expected).max() <= (1.01 if is_product else 0)


def test_there_are_many_variants() -> None:
    assert len(variants()) >= 300


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_a_deep_png_is_read_bit_for_bit(tmp_path: Path, channels: int) -> None:
    samples = np.random.default_rng(0).integers(0, 65536, (HEIGHT, WIDTH, channels), np.uint16)
    if channels in (2, 4):
        samples[..., -1] = 65535
    data = imagecodecs.png_encode(samples[..., 0] if channels == 1 else samples)
    (tmp_path / "scan.png").write_bytes(data)
    photo = load_photo(tmp_path / "scan.png")
    color = samples[..., : 1 if channels < 3 else 3]
    expected = np.broadcast_to(color, (HEIGHT, WIDTH, 3))
    assert torch.equal(photo.pixels.permute(1, 2, 0), torch.from_numpy(expected.copy()))
    assert photo.is_gray == (channels < 3)
