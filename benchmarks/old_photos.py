"""Colorize the bundled old photos; prints figures and draws the contact sheet in docs/images.

    python -m benchmarks.old_photos [--bundle DIR] [--sheet FILE.jpg]

Structure is the correlation of the luma before and after, at a long side of 256 pixels.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from colorflux_core.bundles.bundle import load_bundle
from colorflux_core.model.colorization import colorize
from colorflux_core.photos.canvas import Canvas
from colorflux_core.photos.color import colorfulness, grayscale, luminance
from colorflux_core.photos.contact_sheet import below, beside
from colorflux_core.photos.images import eight_bit
from colorflux_core.photos.photo import load_photo
from colorflux_core.photos.resize import Resizing

PHOTOS = Path(__file__).parent.parent / "docs" / "photos" / "old"
ROW_HEIGHT, PER_ROW, GAP = 300, 2, 8


def small_luma(rgb: Tensor) -> Tensor:
    small = Resizing.onto(Canvas("aspect", 256), (rgb.shape[-2], rgb.shape[-1])).to_canvas(rgb)
    return luminance(small).flatten()


def picture(rgb: Tensor) -> Image.Image:
    image = eight_bit(rgb)
    width = round(image.width * ROW_HEIGHT / image.height)
    return image.resize((width, ROW_HEIGHT), Image.Resampling.LANCZOS)


def sheet(pairs: list[tuple[Image.Image, Image.Image]]) -> Image.Image:
    """Photos beside their colorizations, ``PER_ROW`` pairs in a row."""
    joined = [beside(pair, GAP) for pair in pairs]
    rows = [joined[i : i + PER_ROW] for i in range(0, len(joined), PER_ROW)]
    return below([beside(row, GAP) for row in rows], GAP)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--bundle", default="nano", help="bundle folder or name")
    parser.add_argument("--sheet", type=Path, help="where to write the contact sheet")
    arguments = parser.parse_args()
    bundle = load_bundle(arguments.bundle)
    bundle.pipeline.set_progress_bar_config(disable=True)

    pairs = []
    print(f"{'':36}{'size':>12}{'structure':>11}{'colorfulness':>14}{'seconds':>9}")
    for path in sorted(PHOTOS.glob("*.jpg")):
        photo = load_photo(path)
        began = time.perf_counter()
        rgb = colorize(bundle.pipeline, photo.pixels, bundle.settings)
        seconds = time.perf_counter() - began
        structure = torch.corrcoef(torch.stack([small_luma(photo.rgb), small_luma(rgb)]))[0, 1]
        size = "same" if tuple(rgb.shape[-2:]) == photo.size else f"{tuple(rgb.shape[-2:])}"
        print(
            f"{path.stem:36}{size:>12}{structure.item():11.3f}"
            f"{colorfulness(rgb).item():14.1f}{seconds:9.1f}"
        )
        pairs.append((picture(grayscale(photo.rgb)), picture(rgb)))
    if arguments.sheet:
        sheet(pairs).save(arguments.sheet, quality=88)


if __name__ == "__main__":
    main()
