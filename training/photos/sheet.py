"""A contact sheet of photo files: labeled rows of COLUMNS thumbnails."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from colorflux_core.photos.photo import load_photo

from .measure import picture

COLUMNS, CELL, GAP = 10, 128, 4
LABEL_HEIGHT = 24


def contact_sheet(rows: Mapping[str, list[Path]]) -> Image.Image:
    """Draw up to COLUMNS photos per row, below the row's label.

    Raises ColorFluxError if a photo cannot be read.
    """
    row_height = LABEL_HEIGHT + CELL + GAP
    sheet = Image.new(
        "RGB", (COLUMNS * (CELL + GAP) + GAP, max(1, len(rows)) * row_height), "white"
    )
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(15)
    for row, (label, photos) in enumerate(rows.items()):
        top = row * row_height
        draw.text((GAP, top + GAP), label, "black", font)
        for column, photo in enumerate(photos[:COLUMNS]):
            small = picture(load_photo(photo), CELL)
            left = GAP + column * (CELL + GAP) + (CELL - small.width) // 2
            sheet.paste(small, (left, top + LABEL_HEIGHT + (CELL - small.height) // 2))
    return sheet
