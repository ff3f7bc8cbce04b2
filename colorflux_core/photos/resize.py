"""Resize photos to the model's canvas and back, with the photo's own fine detail.

The model works at canvas size and returns colors and tones (Pro-DPO restores brightness and
contrast), but no finer detail. :meth:`Resizing.back` takes the coarse picture from the model and
the detail from the full-size original, scaled by the model's change of local contrast. The scale
is the slope of the local linear model of the guided filter (He, Sun and Tang 2013), fitted at
canvas size and applied at full size as in the fast guided filter (He and Sun 2015).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import ColorFluxError
from .canvas import Canvas, Size
from .color import luminance, require_finite, rgb_to_ycbcr, unit_range, ycbcr_to_rgb

RESOLVED_RADIUS = 4
"""Canvas pixels: detail is what a box filter of this radius removes."""

WINDOW_RADIUS = 8
"""Canvas pixels: radius of the window in which the change of contrast is measured."""

LUMA_RIDGE, CHROMA_RIDGE, OVERALL_RIDGE = 1e-3, 3e-2, 1e-5
"""Ridge parameters: variances of luma (in [0, 1]) below which the slope of a window's luma or
chroma, or of the full photo's luma, is not reliable."""

STRIP_PIXELS = 2**20
"""Full-size pixels processed at a time."""


@dataclass(frozen=True)
class Resizing:
    """The resizing of a photo to the canvas and back; both sizes are (height, width)."""

    original: Size
    canvas: Size

    @classmethod
    def onto(cls, canvas: Canvas, original: Size) -> Resizing:
        """The resizing of a photo of size ``original`` to ``canvas``."""
        return cls(original, canvas.size(original))

    def to_canvas(self, image: Tensor) -> Tensor:
        """The photo ([N,] C, H, W), of any bit depth, at canvas size: float32 in [0, 1]."""
        # Channel by channel, so that large scans are never completely in float32.
        return torch.cat(
            [_resize(unit_range(channel), self.canvas) for channel in image.split(1, dim=-3)],
            dim=-3,
        )

    def back(self, image: Tensor, original: Tensor | None = None, detail: float = 0.0) -> Tensor:
        """The model's image ([N,] 3, h, w) in [0, 1] at the photo's own size, ([N,] 3, H, W).

        Args:
            image: The model's result, at canvas size.
            original: The photo before :meth:`to_canvas`, ([N,] 3, H, W), of any bit depth; required
                for detail, which is added in strips so that large scans fit into memory.
            detail: 0 only resizes; 1 takes all detail finer than ``RESOLVED_RADIUS`` from the
                original, with the model's local contrast. Colors, brightness and coarse contrast
                are always the model's.

        Raises:
            ColorFluxError: for a detail outside [0, 1], or above 0 without an original of the right
                size, and for an image with NaN or infinite values.
        """
        if not 0 <= detail <= 1:
            raise ColorFluxError(f"detail must be between 0 and 1, not {detail}.")
        require_finite(image, "The image")
        result = _resize(image, self.original)
        if detail == 0:
            return result
        if original is None or tuple(original.shape[-2:]) != self.original:
            given = "none" if original is None else "x".join(map(str, original.shape[-2:]))
            raise ColorFluxError(
                f"detail {detail} needs the original photo of {self.original[0]}x"
                f"{self.original[1]} pixels, not {given}: set detail to 0."
            )
        maps = _detail_maps(luminance(self.to_canvas(original)), rgb_to_ycbcr(image))
        for rows in self._strips():
            base, smooth, gain = _upsample_rows(maps, self.original, rows).split([1, 1, 3], dim=-3)
            strip = result[..., rows, :]
            ycbcr = torch.cat([base, rgb_to_ycbcr(strip)[..., 1:, :, :]], dim=-3)
            ycbcr += gain * (luminance(unit_range(original[..., rows, :])) - smooth)
            strip.lerp_(ycbcr_to_rgb(ycbcr).clamp_(0, 1), detail)
        return result

    def _strips(self) -> Iterator[slice]:
        height, width = self.original
        rows = max(1, STRIP_PIXELS // width)
        return (slice(top, min(top + rows, height)) for top in range(0, height, rows))


def _interpolate(image: Tensor, size: Size, mode: str, *, antialias: bool = False) -> Tensor:
    batch = image.reshape(-1, *image.shape[-3:])
    resized = F.interpolate(batch, size=size, mode=mode, antialias=antialias)
    return resized.reshape(*image.shape[:-2], *size)


def _resize(image: Tensor, size: Size) -> Tensor:
    return _interpolate(image, size, "bicubic", antialias=True).clamp_(0, 1)


def _detail_maps(guide: Tensor, ycbcr: Tensor) -> Tensor:
    """The maps for :meth:`Resizing.back` at canvas size, (..., 5, h, w).

    The model's coarse luma, the original's coarse luma, and the gain from the original's detail
    to the model's Y, Cb and Cr. The gains are the slopes of a ridge regression on the original's
    luma over the window. Both are smoothed first, since the model's own fine detail is not
    reliable. In flat areas the ridge shrinks the slope of Y to that of the full image, so that
    flat but textured surfaces change their contrast like the rest, and the slopes of Cb and Cr to
    zero, which keeps the model's color.
    """
    guide, image = _box(guide, RESOLVED_RADIUS), _box(ycbcr, RESOLVED_RADIUS)
    luma_only = guide.new_tensor([1.0, 0.0, 0.0]).view(3, 1, 1)

    def slope(mean: Callable[[Tensor], Tensor], ridge: float | Tensor, prior: Tensor) -> Tensor:
        variance = (mean(guide * guide) - mean(guide) ** 2).clamp(min=0)
        covariance = mean(guide * image) - mean(guide) * mean(image)
        return (covariance + ridge * prior) / (variance + ridge)

    def whole(values: Tensor) -> Tensor:
        return values.mean(dim=(-2, -1), keepdim=True)

    def window(values: Tensor) -> Tensor:
        return _box(values, WINDOW_RADIUS)

    overall = slope(whole, OVERALL_RIDGE, prior=luma_only)
    ridge = LUMA_RIDGE * luma_only + CHROMA_RIDGE * (1 - luma_only)
    gain = slope(window, ridge, prior=overall * luma_only)
    return torch.cat([image[..., :1, :, :], guide, window(gain)], dim=-3)


def _box(values: Tensor, radius: int) -> Tensor:
    return F.avg_pool2d(values, 2 * radius + 1, 1, radius, count_include_pad=False)


def _upsample_rows(maps: Tensor, size: Size, rows: slice) -> Tensor:
    """Rows of the maps interpolated bilinearly to the size, independent of the choice of strips."""
    height = maps.shape[-2]
    position = torch.arange(rows.start, rows.stop, dtype=torch.float64, device=maps.device)
    position = ((position + 0.5) * height / size[0] - 0.5).clamp(0, height - 1)
    above = position.long()
    below = (above + 1).clamp(max=height - 1)
    weight = (position - above).to(maps.dtype).unsqueeze(-1)
    strip = torch.lerp(maps[..., above, :], maps[..., below, :], weight)
    return _interpolate(strip, (len(position), size[1]), "bilinear")
