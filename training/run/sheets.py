"""Sample sheets, which grow row by row as training goes on."""

from __future__ import annotations

from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageOps
from torch import Tensor

from ..stage import Sheet

LABEL = 24
"""Height in pixels of the label above a drawn row."""

MAX_SIDE = 8192
"""Largest width and height of samples.jpg, in pixels."""


def grow_sheet(folder: Path, sheet: Sheet, step: int) -> None:
    """Save a step's drawn rows as ``samples/step-<step>.png``, and the given rows with all drawn
    rows so far as ``samples.jpg``."""
    strips = folder / "samples"
    strips.mkdir(exist_ok=True)
    labeled(grid(sheet.drawn), f"step {step}").save(strips / f"step-{step:07}.png")
    parts = [grid(sheet.given), *(Image.open(strip) for strip in sorted(strips.glob("*.png")))]
    scale = min(1.0, MAX_SIDE / parts[0].width, MAX_SIDE / sum(part.height for part in parts))
    parts = [ImageOps.scale(part, scale) for part in parts]
    whole = Image.new("RGB", (parts[0].width, sum(part.height for part in parts)))
    for index, part in enumerate(parts):
        whole.paste(part, (0, sum(above.height for above in parts[:index])))
    whole.save(folder / "samples.jpg", quality=92)


def truncate_sheets(folder: Path, step: int) -> None:
    """Drop the samples drawn after the checkpoint that a run resumes from."""
    for strip in (folder / "samples").glob("step-*.png"):
        if int(strip.stem.removeprefix("step-")) > step:
            strip.unlink()


def grid(rows: list[Tensor]) -> Image.Image:
    pictures = torch.cat([torch.cat(list(row.float().cpu()), dim=-1) for row in rows], dim=-2)
    pixels = (pictures.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).contiguous()
    return Image.fromarray(pixels.numpy())


def labeled(image: Image.Image, text: str) -> Image.Image:
    whole = Image.new("RGB", (image.width, image.height + LABEL))
    whole.paste(image, (0, LABEL))
    ImageDraw.Draw(whole).text((6, 4), text, fill="white")
    return whole
