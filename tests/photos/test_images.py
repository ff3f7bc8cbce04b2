"""Samples of all depths become the nearest of 256 levels."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from colorflux_core.photos.color import unit_range
from colorflux_core.photos.images import eight_bit, to_uint8


def rgb_of(samples: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(samples).expand(3, 1, -1)


def test_sixteen_bits_are_rounded_as_the_model_sees_them() -> None:
    deep = rgb_of(np.arange(65536, dtype=np.uint16))
    rounded = to_uint8(eight_bit(deep))
    assert torch.equal(rounded, to_uint8(eight_bit(unit_range(deep))))
    errors = rounded.double() - deep.double() / 257
    assert errors.abs().max() < 0.5


@pytest.mark.parametrize("scale", [1, 257])
def test_eight_bits_stay_as_they_are(scale: int) -> None:
    levels = np.arange(256)
    samples = (scale * levels).astype(np.uint8 if scale == 1 else np.uint16)
    assert to_uint8(eight_bit(rgb_of(samples)))[0, 0].tolist() == levels.tolist()


def test_floats_are_clamped() -> None:
    pixels = rgb_of(np.array([-0.1, 0, 0.5, 1, 1.1], np.float32))
    assert to_uint8(eight_bit(pixels))[0, 0].tolist() == [0, 0, 128, 255, 255]
