from __future__ import annotations

import io
import resource
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image, ImageCms
from torch import Tensor

from colorflux_core.errors import ColorFluxError
from colorflux_core.photos.metadata import Metadata
from colorflux_core.photos.photo import Photo, is_photo_file, load_photo, save_photo

HEIGHT, WIDTH = 20, 30


def picture(mode: str = "RGB") -> Image.Image:
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH]
    rgb = np.stack([x * 8, y * 12, (x + y) * 5], axis=-1).astype(np.uint8)
    return Image.fromarray(rgb).convert(mode)


def expected(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1) / 255


def deep_samples(channels: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.rand(channels, HEIGHT, WIDTH, generator=generator)


def deep_photo(pixels: Tensor, **other: Any) -> Photo:
    deep = torch.from_numpy((pixels * 65535).round().numpy().astype(np.uint16))
    return Photo(Path("scan.png"), deep, is_gray=False, **other)


LOSSLESS = [
    (suffix, mode)
    for suffix, modes in {
        ".png": ["1", "L", "LA", "P", "RGB", "RGBA"],
        ".tif": ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK"],
    }.items()
    for mode in modes
]


@pytest.mark.parametrize(("suffix", "mode"), LOSSLESS)
def test_modes(tmp_path: Path, suffix: str, mode: str) -> None:
    image = picture(mode)
    path = tmp_path / f"scan{suffix}"
    image.save(path)
    photo = load_photo(path)
    assert torch.equal(photo.rgb, expected(image))
    assert photo.bit_depth == 8 and photo.size == (HEIGHT, WIDTH)
    assert photo.is_gray == (mode in ("1", "L", "LA"))


@pytest.mark.parametrize(
    ("suffix", "mode"), [(".jpg", "L"), (".jpg", "RGB"), (".jpg", "CMYK"), (".webp", "RGB")]
)
def test_lossy_formats(tmp_path: Path, suffix: str, mode: str) -> None:
    path = tmp_path / f"scan{suffix}"
    picture(mode).save(path, quality=100)
    assert (load_photo(path).rgb - expected(picture(mode))).abs().mean() < 0.02


@pytest.mark.parametrize("mode", ["LA", "RGBA", "P"])
def test_transparent_parts_lie_on_white(tmp_path: Path, mode: str) -> None:
    path = tmp_path / "scan.png"
    if mode == "P":
        image = picture("P")
        image.save(path, transparency=bytes(range(256)))
        image = Image.open(path).convert("RGBA")
    else:
        image = picture(mode)
        image.putalpha(Image.linear_gradient("L").resize(image.size))
        image.save(path)
    white = Image.new("RGBA", image.size, "white")
    reference = expected(Image.alpha_composite(white, image.convert("RGBA")))
    assert (load_photo(path).rgb - reference).abs().max() < 1.01 / 255


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_sixteen_bit_gray(tmp_path: Path, suffix: str) -> None:
    samples = (deep_samples(1)[0] * 65535).numpy().astype(np.uint16)
    Image.fromarray(samples).save(tmp_path / f"scan{suffix}")
    photo = load_photo(tmp_path / f"scan{suffix}")
    assert photo.bit_depth == 16 and photo.is_gray
    assert all(np.array_equal(channel.numpy(), samples) for channel in photo.pixels)


def test_sixteen_bit_gray_where_white_is_zero(tmp_path: Path) -> None:
    samples = (deep_samples(1)[0] * 65535).numpy().astype(np.uint16)
    Image.fromarray(65535 - samples).save(tmp_path / "scan.tif", tiffinfo={262: 0})
    with Image.open(tmp_path / "scan.tif") as image:
        assert image.tag_v2[262] == 0  # type: ignore[attr-defined]
    assert np.array_equal(load_photo(tmp_path / "scan.tif").pixels[0].numpy(), samples)


@pytest.mark.parametrize("suffix", [".png", ".tif", ".TIFF"])
def test_sixteen_bit_color_round_trip(tmp_path: Path, suffix: str) -> None:
    source = deep_photo(deep_samples(3), metadata=Metadata(dpi=(600.0, 300.0)))
    path = tmp_path / f"scan{suffix}"
    save_photo(path, source.rgb, source)
    again = load_photo(path)
    assert again.bit_depth == 16 and not again.is_gray
    assert torch.equal(again.pixels, source.pixels)
    assert again.dpi == pytest.approx((600, 300), rel=1e-3)
    with Image.open(path) as image:  # and others can read it
        assert (expected(image) - source.rgb).abs().max() < 1.01 / 255


def png(samples: np.ndarray[Any, Any], color_type: int) -> bytes:
    """A 16-bit PNG of samples (H, W, C) put together from the specification."""

    def chunk(name: bytes, data: bytes) -> bytes:
        body = name + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    height, width, _ = samples.shape
    lines = b"".join(b"\0" + row.astype(">u2").tobytes() for row in samples)
    header = struct.pack(">IIBBBBB", width, height, 16, color_type, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(lines))
        + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("compression", [1, 8])
def test_sixteen_bit_tiffs_of_other_programs(tmp_path: Path, order: str, compression: int) -> None:
    source = deep_photo(deep_samples(3))
    samples = source.pixels.permute(1, 2, 0).numpy().astype(f"{order}u2").tobytes()
    data = samples if compression == 1 else zlib.compress(samples)
    tags = {256: WIDTH, 257: HEIGHT, 258: 16, 259: compression, 262: 2, 273: 8, 277: 3}
    tags |= {278: HEIGHT, 279: len(data)}
    entries = b"".join(struct.pack(f"{order}HHII", tag, 4, 1, value) for tag, value in tags.items())
    directory = struct.pack(f"{order}H", len(tags)) + entries + bytes(4)
    head = {"<": b"II", ">": b"MM"}[order] + struct.pack(f"{order}HI", 42, 8 + len(data))
    (tmp_path / "scan.tif").write_bytes(head + data + directory)
    assert torch.equal(load_photo(tmp_path / "scan.tif").pixels, source.pixels)


def test_sixteen_bit_color_with_alpha(tmp_path: Path) -> None:
    rgba = (deep_samples(4) * 65535).permute(1, 2, 0).numpy().astype(np.uint16)
    (tmp_path / "scan.png").write_bytes(png(rgba, 6))
    photo = load_photo(tmp_path / "scan.png")
    opacity = rgba[..., 3:] / 65535
    on_white = rgba[..., :3] / 65535 * opacity + 1 - opacity
    assert photo.bit_depth == 16
    assert np.abs(photo.rgb.permute(1, 2, 0).numpy() - on_white).max() < 1 / 65535


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".tif", ".webp"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_applied_once(tmp_path: Path, suffix: str, orientation: int) -> None:
    steps = {
        2: ["FLIP_LEFT_RIGHT"],
        3: ["ROTATE_180"],
        4: ["FLIP_TOP_BOTTOM"],
        5: ["TRANSPOSE"],
        6: ["ROTATE_90"],
        7: ["TRANSVERSE"],
        8: ["ROTATE_270"],
    }
    upright = picture()
    stored = upright
    for step in steps.get(orientation, []):
        stored = stored.transpose(Image.Transpose[step])
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    exif[ExifTags.Base.Artist] = "Ansel"
    path = tmp_path / f"scan{suffix}"
    options: dict[str, Any] = {"quality": 100} if suffix in (".jpg", ".webp") else {}
    stored.save(path, exif=exif, **options)
    photo = load_photo(path)
    assert photo.size == (HEIGHT, WIDTH)
    assert (photo.rgb - expected(upright)).abs().mean() < 0.02
    save_photo(tmp_path / "out.jpg", photo.rgb, photo)
    again = load_photo(tmp_path / "out.jpg")
    assert (again.rgb - expected(upright)).abs().mean() < 0.03
    with Image.open(tmp_path / "out.jpg") as image:
        assert image.getexif().get(ExifTags.Base.Orientation, 1) == 1
        assert image.getexif()[ExifTags.Base.Artist] == "Ansel"


@pytest.mark.parametrize("target", [".jpg", ".png", ".tif", ".webp"])
@pytest.mark.parametrize("deep", [False, True])
def test_what_the_file_knew_is_kept(tmp_path: Path, target: str, deep: bool) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.ImageDescription] = "Grandmother, 1931"
    exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.DateTimeOriginal] = "1931:05:01 12:00:00"
    exif.get_ifd(ExifTags.IFD.GPSInfo)[ExifTags.GPS.GPSLatitudeRef] = "N"
    picture().save(tmp_path / "scan.jpg", exif=exif, dpi=(300, 300))
    photo = load_photo(tmp_path / "scan.jpg")
    like = deep_photo(deep_samples(3), metadata=photo.metadata) if deep else photo
    path = tmp_path / f"out{target}"
    save_photo(path, photo.rgb, like)
    with Image.open(path) as image:
        image.load()
        found = image.getexif()
        assert found[ExifTags.Base.ImageDescription] == "Grandmother, 1931"
        original = found.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.DateTimeOriginal]
        assert original == "1931:05:01 12:00:00"
        assert found.get_ifd(ExifTags.IFD.GPSInfo)[ExifTags.GPS.GPSLatitudeRef] == "N"
        profile = ImageCms.ImageCmsProfile(io.BytesIO(image.info["icc_profile"]))
        assert "sRGB" in ImageCms.getProfileDescription(profile)
        if target != ".webp":  # which has no field for it
            assert image.info["dpi"] == pytest.approx((300, 300), rel=1e-3)
    assert load_photo(path).bit_depth == (16 if deep and target in (".png", ".tif") else 8)


def icc_profile(space: bytes, tags: dict[bytes, bytes]) -> bytes:
    """A version 2 display profile from the specification."""
    tags = {
        b"desc": b"desc\0\0\0\0" + struct.pack(">I", 5) + b"Test\0" + bytes(78),
        b"cprt": b"text\0\0\0\0none\0",
        b"wtpt": xyz(0.9642, 1, 0.8249),
    } | tags
    table, body = struct.pack(">I", len(tags)), b""
    start = 128 + 4 + 12 * len(tags)
    for name, data in tags.items():
        table += name + struct.pack(">II", start + len(body), len(data))
        body += data + bytes(-len(data) % 4)
    size = struct.pack(">I", start + len(body))
    header = size + bytes(4) + b"\x02\x10\0\0mntr" + space + b"XYZ " + bytes(12) + b"acsp"
    header = header + bytes(68 - len(header)) + xyz(0.9642, 1, 0.8249)[8:]
    return header + bytes(128 - len(header)) + table + body


def xyz(*values: float) -> bytes:
    return b"XYZ \0\0\0\0" + struct.pack(">3i", *(round(v * 65536) for v in values))


def gamma(value: float) -> bytes:
    return b"curv\0\0\0\0" + struct.pack(">IH", 1, round(value * 256)) + b"\0\0"


ADOBE_LIKE = icc_profile(
    b"RGB ",
    {
        b"rXYZ": xyz(0.60974, 0.31111, 0.01947),
        b"gXYZ": xyz(0.20528, 0.62567, 0.06087),
        b"bXYZ": xyz(0.14919, 0.06322, 0.74457),
        **dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), gamma(2.2)),
    },
)
LINEAR_GRAY = icc_profile(b"GRAY", {b"kTRC": gamma(1.0)})


def srgb_of_linear(value: float) -> float:
    return float(1.055 * value ** (1 / 2.4) - 0.055)


@pytest.mark.parametrize("suffix", [".png", ".tif", ".jpg"])
def test_a_wide_profile_becomes_srgb(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"scan{suffix}"
    Image.new("RGB", (8, 8), (100, 150, 120)).save(path, icc_profile=ADOBE_LIKE, quality=100)
    red, green, blue = (load_photo(path).rgb.mean((1, 2)) * 255).tolist()
    # Adobe RGB (100, 150, 120) in linear sRGB by the published matrices, then encoded.
    linear = np.array([100, 150, 120]) / 255
    linear = linear**2.2
    matrix = np.array([[1.39836, -0.39836, 0], [0, 1, 0], [0, -0.04293, 1.04293]])
    reference = [255 * srgb_of_linear(value) for value in matrix @ linear]
    assert [red, green, blue] == pytest.approx(reference, abs=2.5)


@pytest.mark.parametrize("deep", [False, True])
def test_a_gray_profile_is_applied(tmp_path: Path, deep: bool) -> None:
    samples = np.full((6, 7), 12850 if deep else 50, np.uint16 if deep else np.uint8)
    Image.fromarray(samples).save(tmp_path / "scan.png", icc_profile=LINEAR_GRAY)
    photo = load_photo(tmp_path / "scan.png")
    assert photo.bit_depth == (16 if deep else 8) and photo.is_gray
    assert photo.rgb.mean() == pytest.approx(srgb_of_linear(50 / 255), abs=1.5 / 255)


@pytest.mark.parametrize("profile", [b"no profile at all" * 20, LINEAR_GRAY])
def test_an_unfit_profile_is_ignored(tmp_path: Path, profile: bytes) -> None:
    picture().save(tmp_path / "scan.png", icc_profile=profile)
    assert torch.equal(load_photo(tmp_path / "scan.png").rgb, expected(picture()))


def test_a_gray_photo_under_a_color_profile(tmp_path: Path) -> None:
    picture("L").save(tmp_path / "scan.png", icc_profile=ADOBE_LIKE)
    red, green, blue = load_photo(tmp_path / "scan.png").rgb
    assert (red - green).abs().max() < 2 / 255 and (red - blue).abs().max() < 2 / 255


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".tif", ".webp"])
@pytest.mark.parametrize("orientation", [1, 6])
@pytest.mark.filterwarnings("error")
def test_large_scans_are_an_explicit_choice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str, orientation: int
) -> None:
    path = tmp_path / f"scan{suffix}"
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    picture().save(path, exif=exif)
    with pytest.raises(ColorFluxError, match="--max-megapixels"):
        load_photo(path, max_megapixels=0.0001)
    # Pillow's own limit, here passed as by a scan of 500 megapixels, does not stand in the way.
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    assert load_photo(path).pixels[0].numel() == HEIGHT * WIDTH
    assert Image.MAX_IMAGE_PIXELS == 100


def bad_files(folder: Path) -> dict[str, tuple[Path, str]]:
    def write(name: str, data: bytes) -> Path:
        (folder / name).write_bytes(data)
        return folder / name

    encoded = {}
    for name, kind in (("jpg", "JPEG"), ("png", "PNG"), ("tif", "TIFF"), ("webp", "WEBP")):
        buffer = io.BytesIO()
        picture().resize((200, 200)).save(buffer, kind)
        encoded[name] = buffer.getvalue()
    cases = {
        "missing": (folder / "missing.jpg", "does not exist"),
        "folder": (folder, "is a folder"),
        "beneath a file": (write("plain", b"x") / "photo.png", "cannot be read"),
        "empty": (write("empty.jpg", b""), "is an empty file"),
        "text": (write("notes.png", b"Dear diary, today I scanned"), "is not a photo"),
        "gif": (write("gif.png", b"GIF89a" + bytes(40)), "is not a photo"),
        "header only": (write("header.png", encoded["png"][:8]), "is not a photo"),
        "bad tiff": (write("bad.tif", b"II*\0\xff\xff\xff\xff" + bytes(20)), "is not a photo"),
    }
    for name, data in encoded.items():
        cases[f"truncated {name}"] = (
            write(f"cut.{name}", data[: len(data) // 2]),
            "cannot be read",
        )
    return cases


BAD = [
    *("missing", "folder", "beneath a file", "empty", "text", "gif", "header only", "bad tiff"),
    *(f"truncated {name}" for name in ("jpg", "png", "tif", "webp")),
]


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_told_in_one_line_with_its_name(tmp_path: Path, case: str) -> None:
    path, reason = bad_files(tmp_path)[case]
    with pytest.raises(ColorFluxError, match=reason) as told:
        load_photo(path)
    assert str(path) in str(told.value) and "\n" not in str(told.value)


def test_a_photo_without_area(tmp_path: Path) -> None:
    (tmp_path / "none.png").write_bytes(png(np.zeros((0, 0, 3)), 2))
    with pytest.raises(ColorFluxError, match=r"none\.png"):
        load_photo(tmp_path / "none.png")


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".tif", ".webp"])
@pytest.mark.parametrize("deep", [False, True])
def test_a_full_disk_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, suffix: str, deep: bool
) -> None:
    path = tmp_path / f"photo{suffix}"
    path.write_bytes(b"old")
    image = torch.rand(3, 100, 100)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        with pytest.raises(ColorFluxError, match=r"cannot be written \(File too large\)"):
            save_photo(path, image, deep_photo(image) if deep else None)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]
    save_photo(path, image)
    assert load_photo(path).size == (100, 100)
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("photo.bmp", "end the output's name"),
        ("photo", "end the output's name"),
        ("missing/photo.png", "No such file"),
        ("file/photo.png", "Not a directory"),
        ("folder.png", "is a folder"),
        ("n" * 300 + ".png", "name too long"),
    ],
)
def test_unwritable_outputs(tmp_path: Path, name: str, reason: str) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(ColorFluxError, match=reason):
        save_photo(tmp_path / name, torch.rand(3, 4, 4))
    assert {entry.name for entry in tmp_path.iterdir()} == {"file", "folder.png"}


def test_a_format_that_cannot_hold_the_photo_says_so(tmp_path: Path) -> None:
    with pytest.raises(ColorFluxError, match=r"long\.webp cannot be written"):
        save_photo(tmp_path / "long.webp", torch.rand(3, 1, 20000))
    assert not list(tmp_path.iterdir())


def test_jpeg_keeps_full_color_resolution_and_bytes_repeat(tmp_path: Path) -> None:
    image = torch.zeros(3, 16, 16)
    image[0, :, ::2] = 1
    for name in ("a.jpg", "b.jpg"):
        save_photo(tmp_path / name, image)
    assert (load_photo(tmp_path / "a.jpg").rgb - image).abs().mean() < 0.05
    assert (tmp_path / "a.jpg").read_bytes() == (tmp_path / "b.jpg").read_bytes()


def test_photo_files(tmp_path: Path) -> None:
    for name in ("a.JPG", "b.tiff", "c.txt", ".hidden.jpg", ".d.png.12345678.part"):
        (tmp_path / name).touch()
    (tmp_path / "folder.png").mkdir()
    found = {path.name for path in tmp_path.iterdir() if is_photo_file(path)}
    assert found == {"a.JPG", "b.tiff"}
