"""Sample sheets: one strip of samples per sampling step, and ``samples.jpg`` with all strips."""

from __future__ import annotations

from pathlib import Path

from PIL import Image, ImageOps
from torch import Tensor

from colorflux_core.photos.contact_sheet import below, beside, label
from colorflux_core.photos.images import eight_bit

from ..stage import Sheet

LABEL = 24
"""Height of a strip's label, in pixels."""

MAX_SIDE = 8192
"""Largest width and height of samples.jpg, in pixels."""


def append_to_sheet(folder: Path, sheet: Sheet, step: int) -> None:
    """Save a step's drawn rows as ``samples/step-<step>.png`` and rebuild ``samples.jpg``.

    ``samples.jpg`` shows the given rows above all strips so far, at most MAX_SIDE pixels per side.
    """
    strips = folder / "samples"
    strips.mkdir(exist_ok=True)
    drawn = grid(sheet.drawn)
    title = label(f" step {step}", drawn.width, LABEL, "white", "black")
    below([title, drawn]).save(strips / f"step-{step:07}.png")
    parts = [grid(sheet.given), *(Image.open(strip) for strip in sorted(strips.glob("*.png")))]
    scale = min(1.0, MAX_SIDE / parts[0].width, MAX_SIDE / sum(part.height for part in parts))
    below([ImageOps.scale(part, scale) for part in parts]).save(folder / "samples.jpg", quality=92)


def truncate_sheets(folder: Path, step: int) -> None:
    """Delete the samples drawn after the checkpoint that a run resumes from."""
    for strip in (folder / "samples").glob("step-*.png"):
        if int(strip.stem.removeprefix("step-")) > step:
            strip.unlink()


def grid(rows: list[Tensor]) -> Image.Image:
    """Rows of pictures (N, 3, H, W) in [0, 1]."""
    return below([beside([eight_bit(picture.float()) for picture in row]) for row in rows])
