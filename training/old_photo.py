"""What time, cameras and scanners do to a black-and-white photo, drawn at random.

The gray side of a training pair is made to look old; the color side, which the model is to find,
stays as it is. A border belongs to the picture, so both sides have it.
"""

from __future__ import annotations

import io
import math
import random
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

BORDER_SHARE = 0.15
"""How many of the old photos have a border."""

Gray = NDArray[np.float32]
"""(H, W), 0 to 255, and beyond until the photo is stored."""


def bordered(image: Image.Image, rng: random.Random) -> Image.Image:
    """The picture within the black edge of a film, or the white one of a print."""
    side = image.width
    widths = [round(side * rng.uniform(0.0, 0.1)) for _ in range(4)]
    left, top, right, bottom = widths
    level = rng.choice((rng.randint(0, 40), rng.randint(200, 255)))
    framed = Image.new("RGB", image.size, (level,) * 3)
    inner = image.resize((side - left - right, side - top - bottom), Image.Resampling.LANCZOS)
    framed.paste(inner, (left, top))
    return framed


def aged(gray: Image.Image, rng: random.Random) -> Image.Image:
    """A grayscale picture (mode L) as an old photo of it might be scanned."""
    drawing = np.random.default_rng(rng.getrandbits(64))
    pixels = np.asarray(gray, np.float32)
    for share, change in CHANGES:
        if rng.random() < share:
            pixels = change(pixels, rng, drawing)
    scan = Image.fromarray(pixels.clip(0, 255).round().astype(np.uint8))
    return compressed(scan, rng) if rng.random() < 0.4 else scan


def exposed(pixels: Gray, rng: random.Random, _: np.random.Generator) -> Gray:
    """Under- or overexposed."""
    return 255 * (pixels / 255).clip(0, 1) ** np.float32(math.exp(rng.uniform(-0.5, 0.5)))


def faded(pixels: Gray, rng: random.Random, _: np.random.Generator) -> Gray:
    """Blacks have become gray, or whites have yellowed to gray."""
    contrast = rng.uniform(0.45, 0.95)
    black = 255 * (1 - contrast) * rng.random()
    return contrast * pixels + np.float32(black)


def unevenly_lit(pixels: Gray, rng: random.Random, drawing: np.random.Generator) -> Gray:
    """Darker or paler towards a corner, a side or the middle."""
    coarse = drawing.normal(0, rng.uniform(5, 25), (3, 3)).astype(np.float32)
    height, width = pixels.shape
    smooth = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
    return pixels + np.asarray(smooth)


def blurred(pixels: Gray, rng: random.Random, _: np.random.Generator) -> Gray:
    """Out of focus, moved, or enlarged from a small scan."""
    stored = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
    if rng.random() < 0.3:
        share = rng.uniform(0.35, 0.7)
        small = stored.resize((round(share * stored.width), round(share * stored.height)))
        return np.asarray(small.resize(stored.size), np.float32)
    radius = rng.uniform(0.4, 2.0) * stored.width / 256
    return np.asarray(stored.filter(ImageFilter.GaussianBlur(radius)), np.float32)


def grainy(pixels: Gray, rng: random.Random, drawing: np.random.Generator) -> Gray:
    """Film grain, of one pixel or of a few."""
    height, width = pixels.shape
    size = rng.uniform(1, 2.5)
    cells = (math.ceil(height / size), math.ceil(width / size))
    grain = Image.fromarray(drawing.normal(0, rng.uniform(3, 18), cells).astype(np.float32))
    return pixels + np.asarray(grain.resize((width, height), Image.Resampling.BICUBIC))


def scratched(pixels: Gray, rng: random.Random, _: np.random.Generator) -> Gray:
    """Scratches, folds and dust, bright or dark."""
    height, width = pixels.shape
    damage = Image.new("L", (width, height))
    draw = ImageDraw.Draw(damage)
    for _scratch in range(rng.randint(0, 5)):
        x, y = rng.uniform(0, width), rng.uniform(0, height)
        angle, length = rng.uniform(0, math.pi), rng.uniform(0.1, 1.0) * width
        end = (x + length * math.cos(angle), y + length * math.sin(angle))
        draw.line([(x, y), end], fill=rng.randint(60, 255), width=rng.choice((1, 1, 1, 2)))
    for _speck in range(rng.randint(0, 25)):
        x, y, radius = rng.uniform(0, width), rng.uniform(0, height), rng.uniform(0.3, 1.5)
        draw.ellipse([x - radius, y - radius, x + radius, y + radius], fill=rng.randint(60, 255))
    opacity = np.asarray(damage, np.float32) / 255
    ink = rng.choice((20, 235, 250))
    return pixels + opacity * (np.float32(ink) - pixels)


def compressed(scan: Image.Image, rng: random.Random) -> Image.Image:
    """Stored as a JPEG file."""
    stored = io.BytesIO()
    scan.save(stored, "JPEG", quality=rng.randint(25, 85))
    return Image.open(stored)


CHANGES: tuple[tuple[float, Callable[[Gray, random.Random, np.random.Generator], Gray]], ...] = (
    (0.4, exposed),
    (0.25, unevenly_lit),
    (0.35, blurred),
    (0.25, scratched),
    (0.6, faded),
    (0.5, grainy),
)
"""Each with the share of the old photos that has it, in the order in which they happen."""
