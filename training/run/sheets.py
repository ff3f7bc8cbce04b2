"""Contact sheets."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageOps
from torch import Tensor

LABEL = 24
"""Pixels above a drawn row, for its step."""

MAX_SIDE = 8192
"""Of samples.jpg, in pixels."""


@dataclass(frozen=True)
class Sheet:
    """Rows of pictures (N, 3, H, W) in [0, 1], all of one shape: what is given, what was drawn."""

    given: list[Tensor]
    drawn: list[Tensor]


def grow_sheet(folder: Path, sheet: Sheet, step: int) -> None:
    """Save what was drawn at a step as ``samples/step-<step>.png``, and all of them so far, under
    what was given, as ``samples.jpg``."""
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


def forget_sheets(folder: Path, step: int) -> None:
    """Drop what a run that was stopped has drawn after ``step``."""
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
