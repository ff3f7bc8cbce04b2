"""Color profiles: what an embedded one makes of the samples, and sRGB for the results."""

from __future__ import annotations

import functools
import io
import struct
from typing import Any, cast

import imagecodecs
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms

SAME = 2
"""Levels of 255 by which a profile may differ from sRGB and still count as sRGB."""

_SRGB_PRIMARIES = (0.64, 0.33, 0.30, 0.60, 0.15, 0.06)
_D65 = (0.3127, 0.3290)
_NO_OPTIMIZATION = 0x100
"""LittleCMS then computes every sample instead of interpolating in a coarse table."""

_SPACES = {1: "gray", 3: "rgb", 4: "cmyk"}


class UnfitProfile(ValueError):
    """The profile is damaged, or not for samples of this kind."""


@functools.cache
def srgb_profile() -> bytes:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    # A fixed date: the same photo gives the same file.
    return profile[:24] + struct.pack(">6H", 2000, 1, 1, 0, 0, 0) + profile[36:]


@functools.lru_cache(maxsize=16)
def is_srgb(profile: bytes, channels: int) -> bool:
    """Whether a profile leaves samples as they are; its curves decide, not its name.

    Raises UnfitProfile.
    """
    levels = np.arange(0, 256, 17 if channels == 3 else 1, dtype=np.uint8)
    if channels == 4:
        convert(Image.new("CMYK", (1, 1)), profile)
        return False
    if channels == 3:
        samples = np.stack(np.meshgrid(levels, levels, levels), -1).reshape(1, -1, 3)
    else:
        samples = levels[None]
    converted = np.asarray(convert(Image.fromarray(samples), profile))
    return bool(np.abs(converted.astype(int) - samples).max() <= SAME)


def convert(image: Image.Image, profile: bytes) -> Image.Image:
    """L, RGB or CMYK in 8 bits as sRGB, L or RGB. Raises UnfitProfile."""
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        target = ImageCms.ImageCmsProfile(io.BytesIO(srgb_profile()))
        given = image
        if image.mode == "L" and source.profile.xcolor_space == "RGB ":
            given = image.convert("RGB")
        converted = cast(
            Image.Image, ImageCms.profileToProfile(given, source, target, outputMode="RGB")
        )
    except (OSError, ValueError, ImageCms.PyCMSError) as error:
        raise UnfitProfile(str(error)) from error
    return converted.convert("L") if image.mode == "L" else converted


def convert_deep(samples: NDArray[np.uint16], profile: bytes) -> NDArray[np.uint16]:
    """(H, W, 3 or 4) in 16 bits as sRGB (H, W, 3)."""
    space = _SPACES[samples.shape[-1]]
    return _transform(np.ascontiguousarray(samples), profile, space)


def gray_table(profile: bytes) -> NDArray[np.uint16]:
    """What each of the 65536 gray levels is in sRGB."""
    levels = np.arange(65536, dtype=np.uint16)[None]
    space = ImageCms.ImageCmsProfile(io.BytesIO(profile)).profile.xcolor_space
    if space == "RGB ":
        rgb = _transform(np.repeat(levels[..., None], 3, -1), profile, "rgb")
    else:
        rgb = _transform(levels, profile, "gray")
    luma = rgb[0].astype(np.float64) @ np.array([0.299, 0.587, 0.114])
    return cast(NDArray[np.uint16], luma.round().astype(np.uint16))


def gamma_profile(
    gamma: float, chromaticities: tuple[float, ...] | None, channels: int
) -> bytes | None:
    """The profile that PNG's gAMA and cHRM chunks stand for; None if they describe sRGB.

    Args:
        gamma: Of the encoding, such as 0.45455.
        chromaticities: x and y of white, red, green and blue.
        channels: 1 or 3.
    """
    white, primaries = _D65, _SRGB_PRIMARIES
    if chromaticities and channels == 3:
        white, primaries = chromaticities[:2], chromaticities[2:]  # type: ignore[assignment]
    is_wide = max(abs(a - b) for a, b in zip(primaries, _SRGB_PRIMARIES, strict=True)) > 0.01
    # 0.45455 is what programs write for sRGB.
    if not 0.01 < gamma < 10 or (abs(gamma * 2.2 - 1) < 0.05 and not is_wide):
        return None
    if channels == 1:
        return imagecodecs.cms_profile("gray", gamma=1 / gamma)
    return imagecodecs.cms_profile(
        "rgb", whitepoint=[*white, 1.0], primaries=[*primaries], gamma=1 / gamma
    )


def _transform(samples: NDArray[Any], profile: bytes, space: str) -> NDArray[np.uint16]:
    return cast(
        NDArray[np.uint16],
        imagecodecs.cms_transform(
            samples,
            profile,
            srgb_profile(),
            colorspace=space,
            outcolorspace="rgb",
            flags=_NO_OPTIMIZATION,
        ),
    )
