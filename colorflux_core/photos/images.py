"""Tensors to 8-bit Pillow images and back."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from torch import Tensor

_SIXTEEN_TO_EIGHT = ((np.arange(2**16) + 128) // 257).astype(np.uint8)


def eight_bit(pixels: Tensor) -> Image.Image:
    """An RGB image of ``pixels`` (3, H, W): uint8, uint16 or floating point in [0, 1].

    Samples are rounded to the nearest level. For 16 bits that is x / 257, since 65535 is white;
    it gives the same as rounding the floating-point photo that the model sees. The high byte
    (x >> 8) would darken shadows and brighten highlights by up to one level. Both are exact for
    samples that are 257 times an 8-bit sample.
    """
    if pixels.is_floating_point():
        pixels = (pixels.clamp(0, 1) * 255).round().to("cpu", torch.uint8)
    samples = pixels.permute(1, 2, 0).numpy()
    return Image.fromarray(_SIXTEEN_TO_EIGHT[samples] if samples.dtype == np.uint16 else samples)


def to_uint8(image: Image.Image) -> Tensor:
    """The samples of an RGB image, uint8 (3, H, W)."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)
