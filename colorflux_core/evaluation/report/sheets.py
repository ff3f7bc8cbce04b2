"""Contact sheets: the input, each method's result and the truth, side by side."""

from __future__ import annotations

import io
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageOps
from torch import Tensor

from ...errors import ColorFluxError
from ...photos.color import rgb_to_ycbcr, unit_range
from ...photos.contact_sheet import below, beside, cell, label
from ...photos.images import eight_bit
from ...photos.photo import load_photo
from ..benchmark.sets import Item

logger = logging.getLogger(__name__)

MAX_SIDE = 2048
"""Images are first shrunk to this side, so that large scans need little memory."""

PICTURE, CROP = 320, 240
"""Longest side of a displayed image and of its crop, in pixels."""

ZOOM = 3
"""The side of a crop is the longest side divided by this, at most the shortest side."""

GAP, LINE = 12, 24
"""Pixels between pictures, height of a label."""

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
    """Two rows for each strip: its pictures with the crop outlined, and the crops below them.

    All strips have the same labels, except that the truth may be absent.
    """
    labels = list(dict.fromkeys(text for strip in strips for text in strip.pictures))
    header = beside([label(text, PICTURE, LINE) for text in labels], GAP)
    return ImageOps.expand(
        below([header, *(_rows(strip, labels, header.width) for strip in strips)], GAP),
        GAP,
        "white",
    )


def _rows(strip: Strip, labels: Sequence[str], width: int) -> Image.Image:
    """A strip's part of the sheet, with a line and its name above."""
    name = label(strip.name, width, LINE, "dimgray")
    ImageDraw.Draw(name).line((0, 0, width, 0), fill="silver")
    height = max(picture.height for picture in strip.pictures.values() if picture)
    pictures, crops = [], []
    for text in labels:
        picture, crop = strip.pictures.get(text), strip.crops.get(text)
        if picture is None and text in strip.pictures:
            pictures.append(cell(label(NO_RESULT, PICTURE, LINE, "dimgray"), PICTURE, height))
        else:
            pictures.append(cell(picture and outlined(picture, strip.box), PICTURE, height))
        crops.append(cell(crop, PICTURE, CROP))
    return below([name, beside(pictures, GAP), beside(crops, GAP)], GAP)


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
    image = eight_bit(load_photo(path).pixels)
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
