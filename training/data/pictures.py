"""Pictures: square crops of the manifest's photos, reproducible across runs."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import torch
from PIL import Image, ImageOps
from torch import Tensor

from colorflux_core.digest import digest
from colorflux_core.photos.color import Fading, fade, grayscale, unit_range
from colorflux_core.photos.images import eight_bit, to_uint8
from colorflux_core.photos.photo import load_photo

from ..config import LoopConfig
from .manifest import ManifestPhoto, read_manifest


@dataclass(frozen=True)
class Picture:
    """A square crop of a photo, optionally faded and grayscale; pixels are computed on demand."""

    photo: ManifestPhoto
    side: int
    view: int = 0
    """0 is the full photo, squashed to a square; higher numbers are random crops."""
    seed: int = 0
    fading: Fading | None = None
    gray: bool = False

    @property
    def key(self) -> str:
        """The cache key: a digest of everything that determines the pixels, not of file names."""
        crop = (self.photo.content, self.side, self.view, self.view and self.seed)
        return digest(repr((*crop, self.fading, self.gray)).encode())

    def pixels(self) -> Tensor:
        """uint8 (3, side, side). Raises ColorFluxError if the photo cannot be read."""
        image = open_rgb(self.photo.file)
        if self.view:
            rng = random.Random(f"{self.seed}/{self.photo.content}/{self.view}")
            image = random_view(image, self.side, rng)
        else:
            image = squash(image, self.side)
        if self.fading is not None:
            image = fade(image, self.fading)
        return gray(to_uint8(image)) if self.gray else to_uint8(image)


def views(photos: list[ManifestPhoto], side: int, per_photo: int, seed: int) -> list[Picture]:
    """``per_photo`` crops of each photo: the full photo first, then random crops."""
    return [Picture(photo, side, view, seed) for photo in photos for view in range(per_photo)]


def gray_pictures(pictures: list[Picture]) -> list[Picture]:
    """The same pictures in grayscale."""
    return [replace(picture, gray=True) for picture in pictures]


def pixels(pictures: list[Picture]) -> Tensor:
    """The pixels of all pictures, uint8 (N, 3, side, side)."""
    return torch.stack([picture.pixels() for picture in pictures])


@lru_cache(maxsize=2)
def open_rgb(file: Path) -> Image.Image:
    """The photo as the core reads it, in 8 bits. Raises ColorFluxError if it cannot be read."""
    return eight_bit(load_photo(file).pixels)


def squash(image: Image.Image, side: int) -> Image.Image:
    """The full photo resized to a square, as in the paper (5.1)."""
    return image.resize((side, side), Image.Resampling.LANCZOS)


def random_view(image: Image.Image, side: int, rng: random.Random) -> Image.Image:
    """A random crop with at least a third of the photo's area, mirrored half of the time.

    Its aspect ratio differs from the photo's by at most 4:3 before it is resized to a square.
    """
    area = image.width * image.height * rng.uniform(0.35, 1.0)
    aspect = image.width / image.height * math.exp(rng.uniform(-0.3, 0.3))
    width = min(image.width, round(math.sqrt(area * aspect)))
    height = min(image.height, round(math.sqrt(area / aspect)))
    left, top = rng.randint(0, image.width - width), rng.randint(0, image.height - height)
    box = (left, top, left + width, top + height)
    view = image.resize((side, side), Image.Resampling.LANCZOS, box=box, reducing_gap=3.0)
    return ImageOps.mirror(view) if rng.random() < 0.5 else view


def gray(pictures: Tensor) -> Tensor:
    """Grayscale of uint8 pictures (..., 3, H, W), rounded to uint8 like an 8-bit scan."""
    return (grayscale(unit_range(pictures)) * 255).round().byte()


SAMPLES = 8
"""Number of pictures in a sample sheet."""


def training_pictures(config: LoopConfig, stage: str) -> list[Picture]:
    """Crops of the training photos that a stage may use."""
    photos = read_manifest(config.manifest, config.photo_folder, "train", stage)
    return views(photos, config.canvas, config.views, config.view_seed)


def sample_pictures(config: LoopConfig, stage: str) -> list[Picture]:
    """The first SAMPLES photos of the validation split, uncropped."""
    photos = read_manifest(config.manifest, config.photo_folder, "validation", stage)
    return views(photos[:SAMPLES], config.canvas, 1, config.view_seed)
