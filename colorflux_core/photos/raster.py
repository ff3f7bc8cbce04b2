"""Samples as a file stores them, and their way to sRGB on white."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from . import profiles

STRIP_PIXELS = 2**20
"""Pixels that are converted at a time."""

_MODES = {1: "L", 3: "RGB", 4: "CMYK"}


@dataclass
class Raster:
    """A picture as it was scanned.

    Attributes:
        color: (H, W, 1), (H, W, 3) or (H, W, 4) for gray, RGB and CMYK; uint8 or uint16.
        alpha: (H, W), 0 where the picture is transparent.
        is_premultiplied: The color was multiplied by alpha ("associated").
        profile: The embedded color profile; empty for sRGB.
    """

    color: NDArray[Any]
    alpha: NDArray[Any] | None = None
    is_premultiplied: bool = False
    profile: bytes = b""

    @property
    def is_gray(self) -> bool:
        return self.color.shape[-1] == 1


def raster_of(image: Image.Image) -> Raster:
    """A picture that Pillow has read, in 8 bits. Raises ValueError for other depths."""
    if image.mode in ("F", "I") or image.mode.startswith("I;"):
        raise ValueError(f"samples of kind {image.mode}")
    alpha = None
    is_gray = image.mode in ("1", "L", "LA", "La")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        alpha = np.asarray(image.getchannel("A"))
    wanted = "L" if is_gray else "RGB"
    if image.mode not in ("CMYK", wanted):
        image = image.convert(wanted)
    samples = np.asarray(image)
    return Raster(samples[..., None] if samples.ndim == 2 else samples, alpha)


def to_srgb(raster: Raster) -> tuple[NDArray[Any], list[str]]:
    """(H, W) or (H, W, 3) in sRGB, of the same depth, and what could not be respected.

    Transparent parts lie on white.
    """
    remarks = []
    if raster.profile:
        try:
            if profiles.is_srgb(raster.profile, raster.color.shape[-1]):
                raster.profile = b""
        except profiles.UnfitProfile:
            raster.profile = b""
            remarks.append("its color profile does not fit and is ignored")
    convert = _to_srgb_8 if raster.color.dtype == np.uint8 else _to_srgb_16
    samples = convert(raster)
    return (samples[..., 0] if raster.is_gray and samples.ndim == 3 else samples), remarks


def _to_srgb_8(raster: Raster) -> NDArray[np.uint8]:
    channels, alpha = raster.color.shape[-1], raster.alpha
    if not raster.profile and alpha is None and channels < 4:
        return raster.color
    color = raster.color
    if alpha is not None and raster.is_premultiplied:
        color = _straight(color, alpha)
    profile = raster.profile
    if profile and channels == 1:
        # LittleCMS's 8-bit curves are off by several levels in the shadows.
        levels = profiles.gray_table(profile)[::257] / 257
        color, profile = levels.round().astype(np.uint8)[color], b""
    samples = np.ascontiguousarray(color[..., 0] if channels == 1 else color)
    image = (
        Image.fromarray(samples, _MODES[channels]) if channels == 4 else Image.fromarray(samples)
    )
    if profile:
        image = profiles.convert(image, profile)
    if image.mode == "CMYK":
        image = image.convert("RGB")
    if alpha is not None:
        mask = Image.fromarray(np.ascontiguousarray(alpha))
        image = Image.composite(image, Image.new(image.mode, image.size, "white"), mask)
    return np.array(image)


def _to_srgb_16(raster: Raster) -> NDArray[np.uint16]:
    height, width, channels = raster.color.shape
    if not raster.profile and raster.alpha is None and channels < 4:
        return raster.color
    table = profiles.gray_table(raster.profile) if raster.profile and channels == 1 else None
    result = np.empty((height, width, min(channels, 3)), np.uint16)
    rows = max(1, STRIP_PIXELS // width)
    for top in range(0, height, rows):
        strip = raster.color[top : top + rows]
        alpha = None if raster.alpha is None else raster.alpha[top : top + rows]
        if alpha is not None and raster.is_premultiplied:
            strip = _straight(strip, alpha)
        if table is not None:
            strip = table[strip]
        elif raster.profile:
            strip = profiles.convert_deep(strip, raster.profile)
        elif channels == 4:
            strip = _cmyk_to_rgb(strip)
        if alpha is not None:
            opacity = alpha[..., None].astype(np.float32) / 65535
            strip = (65535 - (65535 - strip) * opacity).round()
        result[top : top + rows] = strip
    return result


def _straight(color: NDArray[Any], alpha: NDArray[Any]) -> NDArray[Any]:
    """Colors that were multiplied by alpha, divided by it."""
    top = np.iinfo(color.dtype).max
    divided = color * (np.float32(top) / np.maximum(alpha, 1)[..., None].astype(np.float32))
    return cast(NDArray[Any], divided.round().clip(0, top).astype(color.dtype))


def _cmyk_to_rgb(cmyk: NDArray[np.uint16]) -> NDArray[np.uint16]:
    """Without a profile, as Pillow does it in 8 bits."""
    light = 65535 - cmyk.astype(np.float32)
    return cast(
        NDArray[np.uint16], (light[..., :3] * light[..., 3:] / 65535).round().astype(np.uint16)
    )
