"""Sheets show every picture once, the same crop of each, and the crop that tells most."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from colorflux_core.errors import ColorFluxError
from colorflux_core.evaluation.benchmark.sets import Item
from colorflux_core.evaluation.report.sheets import (
    CROP,
    INPUT,
    PICTURE,
    Box,
    contact_sheet,
    most_different_box,
    outlined,
    strip,
)


def textured(width: int, height: int) -> np.ndarray:
    return np.random.default_rng(1).integers(90, 160, size=(height, width, 3), dtype=np.uint8)


def test_the_crop_is_where_the_methods_colors_differ() -> None:
    one = textured(240, 160)
    other = one.copy()
    other[100:130, 180:220, 0] += 60
    box = most_different_box([Image.fromarray(one), Image.fromarray(other)])
    assert box.left <= 180 / 240 and box.right >= 220 / 240
    assert box.top <= 100 / 160 and box.bottom >= 130 / 160


def test_a_tint_that_all_of_it_has_does_not_draw_the_crop() -> None:
    """The left half is tinted evenly and strongly; at the right a small thing has another color."""
    one = np.full((90, 180, 3), 120, np.uint8)
    other = one.copy()
    other[:, :85] = (160, 110, 80)
    other[50:60, 150:160] = (140, 115, 110)
    box = most_different_box([Image.fromarray(one[:, 90:]), Image.fromarray(other[:, 90:])])
    assert box.left <= 60 / 90 and box.right >= 70 / 90
    even = most_different_box([Image.fromarray(one[:, :85]), Image.fromarray(other[:, :85])])
    assert even == most_different_box([Image.fromarray(one[:, :85])] * 2)


@pytest.mark.parametrize("size", [(1, 1), (300, 7), (7, 300), (3000, 2), (64, 96), (1023, 511)])
def test_boxes_lie_in_pictures_of_any_size(size: tuple[int, int]) -> None:
    pictures = [Image.fromarray(textured(*size)), Image.new("RGB", size, "red")]
    box = most_different_box(pictures)
    assert 0 <= box.left < box.right <= 1 and 0 <= box.top < box.bottom <= 1
    assert most_different_box(pictures) == box


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    Image.new("RGB", (300, 200), "gray").save(tmp_path / "input.png")
    Image.fromarray(textured(300, 200)).save(tmp_path / "truth.png")
    Image.new("RGB", (128, 128), "red").save(tmp_path / "red.png")
    Image.new("RGB", (300, 200), "blue").save(tmp_path / "blue.png")
    (tmp_path / "broken.png").write_bytes(b"no picture")
    return tmp_path


def test_all_of_an_image_has_one_size(photos: Path) -> None:
    item = Item("photo", photos / "input.png", photos / "truth.png")
    made = strip(item, {"R": photos / "red.png", "B": photos / "blue.png"}, "truth")
    assert list(made.pictures) == list(made.crops) == [INPUT, "R", "B", "truth"]
    sizes = {picture.size for picture in made.pictures.values() if picture}
    assert sizes == {(PICTURE, round(PICTURE * 200 / 300))}
    assert {crop.size for crop in made.crops.values() if crop} == {(CROP, CROP)}
    red = made.pictures["R"]
    assert red and red.getpixel((5, 5)) == (255, 0, 0)


def test_crops_show_the_same_place(photos: Path) -> None:
    """The truth is the method's result as well, so that their crops are one picture."""
    item = Item("photo", photos / "input.png", photos / "truth.png")
    made = strip(item, {"same": photos / "truth.png", "blue": photos / "blue.png"}, "truth")
    assert np.array_equal(np.array(made.crops["same"]), np.array(made.crops["truth"]))


def test_what_is_missing_or_broken_is_left_out(
    photos: Path, caplog: pytest.LogCaptureFixture
) -> None:
    item = Item("photo", photos / "input.png", None)
    with caplog.at_level(logging.WARNING):
        made = strip(item, {"none": None, "broken": photos / "broken.png"}, "truth")
    assert made.pictures["none"] is made.pictures["broken"] is made.crops["broken"] is None
    assert list(made.pictures) == [INPUT, "none", "broken"]
    assert "broken.png" in caplog.text
    assert contact_sheet([made]).width > 3 * PICTURE


def test_an_input_must_be_there(photos: Path) -> None:
    with pytest.raises(ColorFluxError, match="gone"):
        strip(Item("photo", photos / "gone.png", None), {}, "truth")


def test_a_sheet_holds_rows_of_all_shapes_and_labels_of_any_length(photos: Path) -> None:
    Image.new("RGB", (3000, 2), "green").save(photos / "flat.png")
    Image.new("RGB", (20, 900), "green").save(photos / "tall.png")
    long = "a method with a name that is much longer than any column of any sheet is wide " * 3
    strips = [
        strip(Item(name, photos / f"{name}.png", truth), {long: photos / "blue.png"}, "truth")
        for name, truth in (("flat", None), ("tall", photos / "tall.png"), ("input", None))
    ]
    sheet = contact_sheet(strips)
    assert 3 * PICTURE < sheet.width < 3 * PICTURE + 100
    colors = {color for _, color in sheet.getcolors(2**24) or []}
    assert {(0, 128, 0), (0, 0, 255), (255, 255, 255)} <= colors


def test_the_box_is_outlined_on_the_picture() -> None:
    picture = Image.new("RGB", (100, 50), "red")
    drawn = outlined(picture, Box(0.5, 0.0, 1.0, 1.0))
    assert [drawn.getpixel(at) for at in ((50, 20), (51, 20), (49, 20), (99, 49))] == [
        (0, 0, 0),
        (255, 255, 255),
        (255, 0, 0),
        (0, 0, 0),
    ]
    assert picture.getpixel((50, 20)) == (255, 0, 0)
