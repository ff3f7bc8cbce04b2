"""From a scan of any size to its restored version, in memory that does not grow with the scan."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from ..color import grayscale, unit_range
from .color_fix import fix_colors
from .model import S3Diff
from .options import MULTIPLE, Restoration
from .tiling import blend, enlarged, spans

FACTOR = 8
"""Pixels to a latent."""

Report = Callable[[int, int], None]
"""Told (tiles done, tiles in all); what it raises ends the restoration."""


@torch.no_grad()
def restore(
    model: S3Diff,
    rgb: Tensor,
    options: Restoration | None = None,
    on_tile: Report | None = None,
) -> Tensor:
    """Scans of one size without their noise and blur; each is what it would be alone.

    Beside the scan and the result, only a few tiles are in memory at a time.

    Args:
        model: On any device.
        rgb: The scans (N, 3, H, W), of any size and depth.
        options: How.
        on_tile: Called after each tile, of which there are three passes.

    Returns:
        float32 (N, 3, scale * H, scale * W) in [0, 1] on the CPU.
    """
    options = options or Restoration()
    scan = _Enlarged(rgb, options.scale)
    tile, device = options.tile // FACTOR, model.prompts.device
    overlap = tile // 3
    height, width = (side // FACTOR for side in scan.padded)
    total = 3 * len(spans(height, tile, overlap)) * len(spans(width, tile, overlap))
    done = 0

    def counted(result: Tensor) -> Tensor:
        nonlocal done
        done += 1
        if on_tile is not None:
            on_tile(done, total)
        return result

    def encoded(rows: slice, columns: slice) -> Tensor:
        pixels = scan(enlarged(rows, FACTOR), enlarged(columns, FACTOR)).to(device)
        return counted(torch.cat(model.encode(pixels), dim=1))

    def stepped(rows: slice, columns: slice) -> Tensor:
        return counted(model.step(z[..., rows, columns].to(device), options.guidance))

    def decoded(rows: slice, columns: slice) -> Tensor:
        return counted(model.decode(clean[..., rows, columns].to(device)))

    model.adapt(model.de_net(rgb, options.tile))
    z, spread = blend(torch.empty(len(rgb), 8, height, width), tile, overlap, encoded).chunk(2, 1)
    if options.seed is not None:
        generator = torch.Generator().manual_seed(options.seed)
        # One picture's noise for all of them, so that each gets what it gets alone.
        z = z + spread * torch.randn(1, *z.shape[1:], generator=generator)
    clean = blend(torch.empty(z.shape), tile, overlap, stepped)
    result = blend(torch.empty(len(rgb), 3, *scan.padded), tile, overlap, decoded, FACTOR)
    result = result[..., : scan.size[0], : scan.size[1]]
    fix_colors(result, lambda rows: scan(rows, slice(0, scan.size[1])), options.color_fix)
    return grayscale(result) if options.gray else result


class _Enlarged:
    """The scan at the result's size, mirrored at the right and below to a multiple of 64 pixels.

    Any part of it, (N, 3, rows, columns) in [0, 1], is made when it is asked for.
    """

    def __init__(self, rgb: Tensor, scale: float) -> None:
        self.rgb = rgb
        self.size = [max(1, round(scale * side)) for side in rgb.shape[-2:]]
        self.padded = [math.ceil(side / MULTIPLE) * MULTIPLE for side in self.size]

    def __call__(self, rows: slice, columns: slice) -> Tensor:
        image = self.rgb
        places = [(-2, *self._places(-2, rows)), (-1, *self._places(-1, columns))]
        for dim, first, after, *_ in places:
            image = image.narrow(dim, first, after - first)
        image = unit_range(image).float()
        for dim, _, _, low, high, weight in places:
            weight = weight.unsqueeze(-1) if dim == -2 else weight
            image = image.index_select(dim, low).lerp(image.index_select(dim, high), weight)
        return image

    def _places(self, dim: int, span: slice) -> tuple[int, int, Tensor, Tensor, Tensor]:
        """Bilinear interpolation along one side: the part of the scan that it needs, and in that
        part the two neighbours of each sample and the second one's weight."""
        length, size = self.rgb.shape[dim], self.size[dim]
        period = max(2 * (size - 1), 1)
        target = torch.arange(span.start, span.stop) % period
        target = torch.minimum(target, period - target).clamp(max=size - 1)
        position = ((target + 0.5) * (length / size) - 0.5).clamp(0, length - 1)
        low = position.long()
        high = (low + 1).clamp(max=length - 1)
        first, after = int(low.min()), int(high.max()) + 1
        return first, after, low - first, high - first, position - low
