"""Contact sheets: the input, each method's result and the truth, side by side."""

from __future__ import annotations

import io
import logging
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ...errors import ColorFluxError
from ...photos.color import rgb_to_ycbcr, unit_range
from ...photos.photo import load_photo
from ..benchmark.sets import Item, eight_bit

logger = logging.getLogger(__name__)

MAX_SIDE = 2048
"""Images are first shrunk to this side, so that large scans need little memory."""

PICTURE, CROP = 320, 240
"""Longest side of a displayed image and of its crop, in pixels."""

ZOOM = 3
"""The side of a crop is the longest side divided by this, at most the shortest side."""

SEARCH_SIDE = 128
"""Longest side, in pixels, at which the crop position is searched."""

INPUT = "input"
NO_RESULT = "no result"


class Box(NamedTuple):
    """Part of an image, as fractions of its width and height."""

    left: float
    top: float
    right: float
    bottom: float


@dataclass(frozen=True, eq=False)
class Strip:
    """A row of a sheet: images by column label, None for a missing result.

    All images have the same size, and all crops show the same ``box``.
    """

    name: str
    box: Box
    pictures: dict[str, Image.Image | None]
    crops: dict[str, Image.Image | None]


def strip(item: Item, results: Mapping[str, Path | None], truth: str) -> Strip:
    """Load the input, the results by method and, if known, the truth under the label ``truth``.

    Results are resized to the input's size. Unreadable results are treated as missing, with a
    warning.

    Raises:
        ColorFluxError: if the input cannot be read.
    """
    gray = _shrunk(item.input)
    files = dict(results) if item.truth is None else {**results, truth: item.truth}
    images = {INPUT: gray} | {name: _result(path, gray.size) for name, path in files.items()}
    produced = [picture for name in results if (picture := images[name])]
    others = [picture for name in (truth, INPUT) if (picture := images.get(name))]
    box = most_different_box(produced if len(produced) > 1 else [*produced, *others][:2])
    return Strip(
        item.name,
        box,
        {name: image and _contained(image, PICTURE) for name, image in images.items()},
        {name: image and _cropped(image, box) for name, image in images.items()},
    )


def most_different_box(pictures: Sequence[Image.Image]) -> Box:
    """Find the window where the colors (CbCr) of images of the same size differ most.

    A difference shared by the full window, such as another blue of the sky, is visible without
    zooming and does not count: the score is the mean variance over the images, minus the variance
    of the window's mean color.
    """
    width, height = pictures[0].size
    shrink = max(1.0, max(width, height) / SEARCH_SIDE)
    size = (max(1, round(width / shrink)), max(1, round(height / shrink)))
    small = [np.array(image.resize(size, Image.Resampling.BOX)) for image in pictures]
    chroma = rgb_to_ycbcr(unit_range(torch.from_numpy(np.stack(small)).permute(0, 3, 1, 2)))[:, 1:]
    side = max(1, min(*size, round(max(size) / ZOOM)))

    def windows(values: Tensor) -> Tensor:
        return F.avg_pool2d(values, side, stride=1)

    def variance(values: Tensor) -> Tensor:
        return values.var(dim=0, correction=0).sum(dim=0, keepdim=True)

    score = windows(variance(chroma)) - variance(windows(chroma))
    best = int(score.argmax())
    top, left = divmod(best, score.shape[-1])
    return Box(left / size[0], top / size[1], (left + side) / size[0], (top + side) / size[1])


def contact_sheet(strips: Sequence[Strip]) -> Image.Image:
    """Draw a sheet with a row for each strip: its images, with the crop outlined, above the crops.

    All strips have the same labels, except that the truth may be absent.
    """
    labels = list(dict.fromkeys(label for strip in strips for label in strip.pictures))
    heights = [
        max(picture.height for picture in strip.pictures.values() if picture) for strip in strips
    ]
    column, gap, line = PICTURE, 12, 30
    width = gap + len(labels) * (column + gap)
    height = line + sum(line + height + gap + CROP + gap for height in heights)
    sheet = Image.new("RGB", (width, height), "white")
    draw, font = ImageDraw.Draw(sheet), label_font()

    def write(text: str, left: int, top: int, room: int, fill: str = "black") -> None:
        text = " ".join(text.split())
        while text and draw.textlength(text, font) > room:
            text = text[:-2] + "…" if len(text) > 2 else ""
        draw.text((left, top), text, fill=fill, font=font)

    for index, label in enumerate(labels):
        write(label, gap + index * (column + gap), 7, column)
    top = line
    for strip, picture_height in zip(strips, heights, strict=True):
        draw.line((gap, top, width - gap, top), fill="silver")
        write(strip.name, gap, top + 6, width - 2 * gap, "dimgray")
        top += line
        for index, label in enumerate(labels):
            left = gap + index * (column + gap)
            picture, crop = strip.pictures.get(label), strip.crops.get(label)
            if picture and crop:
                sheet.paste(outlined(picture, strip.box), (left, top))
                sheet.paste(crop, (left, top + picture_height + gap))
            elif label in strip.pictures:
                write(NO_RESULT, left, top, column, "dimgray")
        top += picture_height + gap + CROP + gap
    return sheet


def outlined(picture: Image.Image, box: Box) -> Image.Image:
    """Return a copy with the box outlined in black and white."""
    picture = picture.copy()
    left, top, right, bottom = _pixels(box, picture.size)
    draw = ImageDraw.Draw(picture)
    for inset, color in enumerate(("black", "white")):
        corners = (left + inset, top + inset, right - 1 - inset, bottom - 1 - inset)
        if corners[0] <= corners[2] and corners[1] <= corners[3]:
            draw.rectangle(corners, outline=color)
    return picture


def jpeg(image: Image.Image, quality: int = 82) -> bytes:
    """Encode an image as JPEG."""
    encoded = io.BytesIO()
    image.save(encoded, "JPEG", quality=quality, optimize=True)
    return encoded.getvalue()


def _shrunk(path: Path) -> Image.Image:
    image = Image.fromarray(eight_bit(load_photo(path)))
    image.thumbnail((MAX_SIDE, MAX_SIDE), Image.Resampling.LANCZOS)
    return image


def _result(path: Path | None, size: tuple[int, int]) -> Image.Image | None:
    if path is None:
        return None
    try:
        image = _shrunk(path)
    except ColorFluxError as error:
        logger.warning("result not shown: %s", error)
        return None
    return image if image.size == size else image.resize(size, Image.Resampling.LANCZOS)


def _contained(image: Image.Image, side: int) -> Image.Image:
    """Resize to the given longest side; the other side stays at least one pixel."""
    scale = side / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    return image.resize(size, Image.Resampling.BICUBIC)


def _cropped(image: Image.Image, box: Box) -> Image.Image:
    return _contained(image.crop(_pixels(box, image.size)), CROP)


def _pixels(box: Box, size: tuple[int, int]) -> tuple[int, int, int, int]:
    """Convert a box to pixel bounds (left, top, right, bottom) of at least one pixel."""
    left, top = (min(round(at * side), side - 1) for at, side in zip(box[:2], size, strict=True))
    right, bottom = (round(at * side) for at, side in zip(box[2:], size, strict=True))
    return left, top, max(right, left + 1), max(bottom, top + 1)


def label_font() -> ImageFont.ImageFont | ImageFont.FreeTypeFont:
    """A system font if Pillow finds one, because Pillow's own only covers English letters."""
    for name in ("DejaVuSans.ttf", "Arial.ttf", "arial.ttf"):
        with suppress(OSError):
            return ImageFont.truetype(name, 15)
    return ImageFont.load_default(15)
