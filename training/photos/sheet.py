"""A contact sheet of photo files: labeled rows of COLUMNS thumbnails."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from PIL import Image

from colorflux_core.photos.contact_sheet import below, beside, cell, label
from colorflux_core.photos.photo import load_photo

from .measure import picture

COLUMNS, CELL, GAP = 10, 128, 4
LABEL_HEIGHT = 24


def contact_sheet(rows: Mapping[str, list[Path]]) -> Image.Image:
    """Draw up to COLUMNS photos per row, below the row's label.

    Raises ColorFluxError if a photo cannot be read.
    """
    parts = []
    for text, photos in rows.items():
        pictures = [picture(load_photo(photo), CELL) for photo in photos[:COLUMNS]]
        empty = [None] * (COLUMNS - len(pictures))
        row = beside([cell(each, CELL, CELL) for each in (*pictures, *empty)], GAP)
        parts += [label(text, row.width, LABEL_HEIGHT), row]
    return below(parts, GAP)
