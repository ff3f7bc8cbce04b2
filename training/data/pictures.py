"""Pictures: square crops of the manifest's photos, the same in every run."""

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
    """What a photo is turned into before it is encoded."""

    photo: ManifestPhoto
    side: int
    view: int = 0
    """0 for the whole photo, squashed to the square; else the number of a random part."""
    seed: int = 0
    fading: Fading | None = None
    gray: bool = False

    @property
    def key(self) -> str:
        """Equal for equal pixels, whatever the file is called."""
        described = (self.photo.content, self.side, self.view, self.view and self.seed)
        return digest(repr((*described, self.fading, self.gray)).encode())

    def pixels(self) -> Tensor:
        """uint8 (3, side, side). Raises ColorFluxError when the photo cannot be read."""
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
    """``per_photo`` views of each photo: the whole of it first, random parts after."""
    return [Picture(photo, side, view, seed) for photo in photos for view in range(per_photo)]


def gray_pictures(pictures: list[Picture]) -> list[Picture]:
    """What the pictures' black-and-white photos would be."""
    return [replace(picture, gray=True) for picture in pictures]


def pixels(pictures: list[Picture]) -> Tensor:
    """uint8 (N, 3, side, side)."""
    return torch.stack([picture.pixels() for picture in pictures])


@lru_cache(maxsize=2)
def open_rgb(file: Path) -> Image.Image:
    """The photo as the core reads it, in 8 bits. Raises ColorFluxError when it cannot be read."""
    return eight_bit(load_photo(file).pixels)


def squash(image: Image.Image, side: int) -> Image.Image:
    """The whole photo on a square, as the paper feeds it (5.1)."""
    return image.resize((side, side), Image.Resampling.LANCZOS)


def random_view(image: Image.Image, side: int, rng: random.Random) -> Image.Image:
    """A random part of at least a third of the photo, squashed by at most 4:3, perhaps mirrored."""
    area = image.width * image.height * rng.uniform(0.35, 1.0)
    aspect = image.width / image.height * math.exp(rng.uniform(-0.3, 0.3))
    width = min(image.width, round(math.sqrt(area * aspect)))
    height = min(image.height, round(math.sqrt(area / aspect)))
    left, top = rng.randint(0, image.width - width), rng.randint(0, image.height - height)
    box = (left, top, left + width, top + height)
    view = image.resize((side, side), Image.Resampling.LANCZOS, box=box, reducing_gap=3.0)
    return ImageOps.mirror(view) if rng.random() < 0.5 else view


def gray(pictures: Tensor) -> Tensor:
    """The grayscale of uint8 pictures (..., 3, H, W), as uint8: what an 8-bit scan would hold."""
    return (grayscale(unit_range(pictures)) * 255).round().byte()


SAMPLES = 8
"""Pictures in a sample sheet."""


def training_pictures(config: LoopConfig, stage: str) -> list[Picture]:
    """Crops of the training photos that a stage may use."""
    photos = read_manifest(config.manifest, config.photo_folder, "train", stage)
    return views(photos, config.canvas, config.views, config.view_seed)


def sample_pictures(config: LoopConfig, stage: str) -> list[Picture]:
    """The first photos of the validation split, in full."""
    photos = read_manifest(config.manifest, config.photo_folder, "validation", stage)
    return views(photos[:SAMPLES], config.canvas, 1, config.view_seed)
