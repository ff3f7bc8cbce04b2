"""Scans of the kinds that people have: each comes in right, or one line says why not."""

from __future__ import annotations

import io
import os
import struct
import zlib
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pytest
import tifffile
import torch
from numpy.typing import NDArray
from PIL import Image

from colorflux_core.errors import ColorFluxError
from colorflux_core.photos.photo import load_photo, save_photo
from colorflux_core.photos.png import profile_chunk, with_chunks

HEIGHT, WIDTH = 40, 60
TOP = 65535


def ramp(channels: int = 3, dtype: Any = np.uint16) -> NDArray[Any]:
    """(H, W, channels) from 0 to white."""
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH]
    planes = [(x * (c + 1) + y) / (WIDTH * (c + 1) + HEIGHT) for c in range(channels)]
    return (np.stack(planes, -1) * np.iinfo(dtype).max).astype(dtype)


def tiff(path: Path, samples: NDArray[Any], **options: Any) -> Path:
    tifffile.imwrite(path, samples, metadata=None, **options)
    return path


def pixels(path: Path) -> NDArray[np.float64]:
    return load_photo(path).pixels.permute(1, 2, 0).numpy().astype(np.float64)


def refused(path: Path) -> str:
    with pytest.raises(ColorFluxError) as told:
        load_photo(path)
    assert path.name in str(told.value) and "\n" not in str(told.value)
    return str(told.value)


# Depths


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_floating_point_from_0_to_1_becomes_16_bits(tmp_path: Path, dtype: Any) -> None:
    samples = (ramp() / TOP).astype(dtype)
    path = tiff(tmp_path / "a.tif", samples, photometric="rgb")
    assert np.array_equal(pixels(path), (samples.astype(np.float64) * TOP).round())
    assert bool(load_photo(path).remarks) == (dtype != np.float16)


@pytest.mark.parametrize("wrong", [255.0, -0.5, np.nan, np.inf])
def test_floating_point_of_another_range_is_refused(tmp_path: Path, wrong: float) -> None:
    samples = np.full((HEIGHT, WIDTH), 0.5, np.float32)
    samples[3, 4] = wrong
    path = tiff(tmp_path / "a.tif", samples)
    assert "outside 0 to 1" in refused(path)


def test_signed_samples_are_refused(tmp_path: Path) -> None:
    assert "signed" in refused(tiff(tmp_path / "a.tif", np.zeros((9, 9), np.int16)))


def test_32_bits_are_scaled_with_a_remark(tmp_path: Path) -> None:
    samples = (ramp(1)[..., 0].astype(np.uint64) * 65537).astype(np.uint32)
    path = tiff(tmp_path / "a.tif", samples)
    assert np.array_equal(pixels(path)[..., 0], ramp(1)[..., 0])
    assert load_photo(path).remarks == ("reduced from 32 to 16 bits",)


# Channels


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("channels", [4, 5])
def test_channels_that_no_tag_explains_are_left_out(
    tmp_path: Path, dtype: Any, channels: int
) -> None:
    samples = ramp(channels, dtype)
    samples[..., 3] = 0  # As transparency, it would make the photo white.
    path = tmp_path / "infrared.tif"
    data = io.BytesIO()
    tifffile.imwrite(
        data,
        samples,
        photometric="rgb",
        extrasamples=["unspecified"] * (channels - 3),
        metadata=None,
    )
    # 338 is ExtraSamples: here it becomes a tag that nobody knows.
    path.write_bytes(
        data.getvalue().replace(struct.pack("<HH", 338, 3), struct.pack("<HH", 65000, 3), 1)
    )
    for name in (
        path,
        tiff(tmp_path / "b.tif", samples, photometric="rgb", extrasamples=[0] * (channels - 3)),
    ):
        photo = load_photo(name)
        assert np.array_equal(pixels(name), samples[..., :3])
        assert any("extra channel" in remark for remark in photo.remarks)


def test_associated_alpha_lies_on_white(tmp_path: Path) -> None:
    alpha = ramp(1)
    premultiplied = (ramp().astype(np.float64) * alpha / TOP).round().astype(np.uint16)
    samples = np.concatenate([premultiplied, alpha], -1)
    path = tiff(tmp_path / "a.tif", samples, photometric="rgb", extrasamples=["assocalpha"])
    assert np.abs(pixels(path) - (premultiplied + (TOP - alpha.astype(np.float64)))).max() <= 1.5
    assert load_photo(path).bit_depth == 16


def test_16_bit_gray_with_alpha_and_cmyk_with_alpha(tmp_path: Path) -> None:
    gray = np.concatenate([ramp(1), np.full((HEIGHT, WIDTH, 1), TOP, np.uint16)], -1)
    path = tiff(tmp_path / "a.tif", gray, photometric="minisblack", extrasamples=["unassalpha"])
    assert np.array_equal(pixels(path)[..., 0], gray[..., 0])
    cmyk = ramp(5)
    cmyk[..., 4] = TOP
    path = tiff(tmp_path / "c.tif", cmyk, photometric="separated", extrasamples=["unassalpha"])
    light = TOP - cmyk.astype(np.float64)
    assert np.abs(pixels(path) - light[..., :3] * light[..., 3:4] / TOP).max() <= 1


# Profiles and gamma


def profile(name: str = "test", gamma: float = 1.0, wide: bool = False) -> bytes:
    """An RGB profile with a name; wide ones have Adobe RGB's primaries."""
    primaries = [0.64, 0.33, 0.21, 0.71, 0.15, 0.06] if wide else [0.64, 0.33, 0.3, 0.6, 0.15, 0.06]
    made = imagecodecs.cms_profile(
        "rgb", whitepoint=[0.3127, 0.329, 1.0], primaries=primaries, gamma=gamma
    )
    assert isinstance(made, bytes)
    described = "RGB built-in".encode("utf-16-be")
    assert described in made
    return made.replace(described, name.ljust(12)[:12].encode("utf-16-be"))


def srgb(linear: NDArray[Any]) -> NDArray[Any]:
    return np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_a_linear_profile_is_applied_whatever_its_name(tmp_path: Path, dtype: Any) -> None:
    samples = ramp(3, dtype)
    top = np.iinfo(dtype).max
    path = tiff(tmp_path / "a.tif", samples, photometric="rgb", iccprofile=profile("Linear sRGB"))
    assert np.abs(pixels(path) / top - srgb(samples / top)).max() < (0.01 if top == 255 else 1e-4)
    assert load_photo(path).bit_depth == (8 if top == 255 else 16)


def test_a_wide_profile_is_applied_in_16_bits(tmp_path: Path) -> None:
    path = tiff(
        tmp_path / "a.tif", ramp(), photometric="rgb", iccprofile=profile(gamma=2.2, wide=True)
    )
    matrix = np.array([[1.39836, -0.39836, 0], [0, 1, 0], [0, -0.04293, 1.04293]])
    expected = srgb(((ramp() / TOP) ** 2.2 @ matrix.T).clip(0, 1))
    assert load_photo(path).bit_depth == 16
    assert np.abs(pixels(path) / TOP - expected).max() < 2e-3
    eight = tiff(
        tmp_path / "b.tif",
        ramp(3, np.uint8),
        photometric="rgb",
        iccprofile=profile(gamma=2.2, wide=True),
    )
    assert np.abs(pixels(eight) - 255 * expected).max() < 3


def png_with(path: Path, samples: NDArray[Any], *chunks: tuple[bytes, bytes]) -> Path:
    path.write_bytes(b"".join(with_chunks(bytes(imagecodecs.png_encode(samples)), chunks)))
    return path


GAMMA = {
    name: (b"gAMA", struct.pack(">I", value))
    for name, value in (("linear", 100000), ("srgb", 45455))
}
D65_WIDE = (b"cHRM", struct.pack(">8I", 31270, 32900, 64000, 33000, 21000, 71000, 15000, 6000))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("channels", [1, 3])
def test_png_gamma_is_applied(tmp_path: Path, dtype: Any, channels: int) -> None:
    samples = ramp(channels, dtype)
    samples = samples[..., 0] if channels == 1 else samples
    top = np.iinfo(dtype).max
    path = png_with(tmp_path / "a.png", samples, GAMMA["linear"])
    expected = srgb(samples / top)
    found = pixels(path)[..., 0] if channels == 1 else pixels(path)
    assert np.abs(found / top - expected).max() < (0.01 if top == 255 else 1e-4)
    assert load_photo(path).bit_depth == (8 if top == 255 else 16)


def test_png_gamma_of_srgb_leaves_the_samples_and_profiles_come_first(tmp_path: Path) -> None:
    from colorflux_core.photos.profiles import srgb_profile

    samples = ramp()
    for others in (
        [GAMMA["srgb"]],
        [(b"sRGB", b"\0"), GAMMA["linear"]],
        [profile_chunk("sRGB", srgb_profile()), GAMMA["linear"]],
    ):
        assert np.array_equal(pixels(png_with(tmp_path / "a.png", samples, *others)), samples)
    wide = pixels(png_with(tmp_path / "w.png", samples, GAMMA["srgb"], D65_WIDE))
    assert np.abs(wide - samples).max() > 1000


# Pages and completeness


@pytest.mark.parametrize("flagged", [True, False])
def test_a_thumbnail_before_the_photo(tmp_path: Path, flagged: bool) -> None:
    with tifffile.TiffWriter(tmp_path / "a.tif") as file:
        small = ramp()[::4, ::4].copy()
        file.write(small, photometric="rgb", subfiletype=int(flagged), metadata=None)
        file.write(ramp(), photometric="rgb", metadata=None)
        file.write(ramp()[::-1].copy(), photometric="rgb", metadata=None)
    assert np.array_equal(pixels(tmp_path / "a.tif"), ramp())
    assert load_photo(tmp_path / "a.tif").remarks == ("1 further page left out",)


def cut_jpeg(**options: Any) -> bytes:
    file = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (120, 160, 3), np.uint8)
    Image.fromarray(noise).save(file, "JPEG", **options)
    data = file.getvalue()
    return data[: len(data) * 2 // 3] + b"\xff\xd9"


@pytest.mark.parametrize(
    "options", [{}, {"progressive": True}, {"restart_marker_blocks": 3}, {"subsampling": "4:4:4"}]
)
def test_a_jpeg_that_ends_early_is_damaged(tmp_path: Path, options: dict[str, Any]) -> None:
    (tmp_path / "a.jpg").write_bytes(cut_jpeg(**options))
    assert "ends before the picture is complete" in refused(tmp_path / "a.jpg")


def test_a_jpeg_that_declares_more_lines_than_it_holds(tmp_path: Path) -> None:
    Image.fromarray(ramp(3, np.uint8)).save(tmp_path / "a.jpg")
    data = (tmp_path / "a.jpg").read_bytes()
    (tmp_path / "a.jpg").write_bytes(
        data.replace(struct.pack(">HH", HEIGHT, WIDTH), struct.pack(">HH", 2 * HEIGHT, WIDTH), 1)
    )
    assert "ends before" in refused(tmp_path / "a.jpg")


@pytest.mark.parametrize("compression", [None, "lzw", "zlib", "packbits"])
def test_a_tiff_that_ends_early_is_damaged(tmp_path: Path, compression: str | None) -> None:
    path = tiff(tmp_path / "a.tif", ramp(), photometric="rgb", compression=compression)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) - 500])
    refused(path)


def test_a_tiff_with_a_missing_strip_is_damaged(tmp_path: Path) -> None:
    path = tiff(tmp_path / "a.tif", ramp(), photometric="rgb", rowsperstrip=8, compression="lzw")
    with tifffile.TiffFile(path, mode="r+") as file:
        tag = file.pages[0].tags[279]  # type: ignore[union-attr]
        tag.overwrite([0, *tag.value[1:]])
    assert "missing" in refused(path)


# Sound files that were refused, and files of other kinds


def test_a_png_with_two_megabytes_of_text(tmp_path: Path) -> None:
    text = b"Comment\0\0" + zlib.compress(b"x" * 2_000_000)
    path = png_with(tmp_path / "a.png", ramp(3, np.uint8), (b"zTXt", text))
    assert np.array_equal(pixels(path), ramp(3, np.uint8))
    photo = load_photo(path)
    save_photo(tmp_path / "b.png", photo.rgb, photo)
    assert (b"zTXt", text) in load_photo(tmp_path / "b.png").metadata.texts


def test_a_palette_without_colors_is_refused(tmp_path: Path) -> None:
    Image.fromarray(ramp(1, np.uint8)[..., 0]).convert("P").save(tmp_path / "a.png")
    data = (tmp_path / "a.png").read_bytes()
    at = data.index(b"PLTE") - 4
    length = struct.unpack(">I", data[at : at + 4])[0]
    (tmp_path / "a.png").write_bytes(data[:at] + data[at + 12 + length :])
    assert "palette is missing" in refused(tmp_path / "a.png")


@pytest.mark.parametrize("name", ["a.bmp", "a.gif", "a.avif", "a.jfif", "a.jpe"])
def test_other_formats_are_read(tmp_path: Path, name: str) -> None:
    image = Image.fromarray(ramp(1, np.uint8)[..., 0])
    kinds = {"a.jfif": "JPEG", "a.jpe": "JPEG"}
    image.convert("RGB" if name == "a.avif" else "L").save(tmp_path / name, kinds.get(name))
    photo = load_photo(tmp_path / name)
    assert (photo.rgb[0] - torch.from_numpy(ramp(1, np.uint8)[..., 0] / 255)).abs().mean() < 0.03


def test_further_pictures_of_an_animation_are_mentioned(tmp_path: Path) -> None:
    frames = [Image.new("L", (9, 9), value) for value in (0, 90, 200)]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert load_photo(tmp_path / "a.gif").remarks == ("2 further pictures left out",)


def test_a_named_pipe_is_refused_and_does_not_hang(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.png")
    assert "is not a file" in refused(tmp_path / "a.png")


# Writing


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        (torch.full((3, 4, 4), torch.nan), "NaN"),
        (torch.full((3, 4, 4), 200.0), "divide it by 255"),
        (torch.rand(1, 3, 4, 4), "1x3x4x4"),
        (torch.rand(4, 4, 3), "4x4x3"),
        (np.zeros((3, 4, 4)), "torch"),
        (torch.zeros(3, 4, 4, dtype=torch.int64), "int64"),
    ],
)
def test_what_is_no_picture_is_not_written(tmp_path: Path, wrong: Any, named: str) -> None:
    with pytest.raises(ColorFluxError, match=named):
        save_photo(tmp_path / "a.png", wrong)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["a.png", "a.tif"])
@pytest.mark.parametrize("depth", [8, 16])
def test_whole_numbers_are_written_as_they_are(tmp_path: Path, name: str, depth: int) -> None:
    samples = ramp(3, np.uint8 if depth == 8 else np.uint16)
    save_photo(tmp_path / name, torch.from_numpy(samples).permute(2, 0, 1), bit_depth=depth)
    assert np.array_equal(pixels(tmp_path / name), samples)
