"""Sample sheets: one strip of samples per sampling step, and ``samples.jpg`` with all strips."""

from __future__ import annotations

from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageOps
from torch import Tensor

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
    labeled(grid(sheet.drawn), f"step {step}").save(strips / f"step-{step:07}.png")
    parts = [grid(sheet.given), *(Image.open(strip) for strip in sorted(strips.glob("*.png")))]
    scale = min(1.0, MAX_SIDE / parts[0].width, MAX_SIDE / sum(part.height for part in parts))
    parts = [ImageOps.scale(part, scale) for part in parts]
    combined = Image.new("RGB", (parts[0].width, sum(part.height for part in parts)))
    for index, part in enumerate(parts):
        combined.paste(part, (0, sum(above.height for above in parts[:index])))
    combined.save(folder / "samples.jpg", quality=92)


def truncate_sheets(folder: Path, step: int) -> None:
    """Delete the strips drawn after ``step``, when a run is resumed from that step."""
    for strip in (folder / "samples").glob("step-*.png"):
        if int(strip.stem.removeprefix("step-")) > step:
            strip.unlink()


def grid(rows: list[Tensor]) -> Image.Image:
    """Rows of pictures (N, 3, H, W) in [0, 1] as one image."""
    pictures = torch.cat([torch.cat(list(row.float().cpu()), dim=-1) for row in rows], dim=-2)
    pixels = (pictures.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).contiguous()
    return Image.fromarray(pixels.numpy())


def labeled(image: Image.Image, text: str) -> Image.Image:
    """``image`` below a line of text."""
    strip = Image.new("RGB", (image.width, image.height + LABEL))
    strip.paste(image, (0, LABEL))
    ImageDraw.Draw(strip).text((6, 4), text, fill="white")
    return strip
