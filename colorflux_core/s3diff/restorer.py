"""From a scan of any size to its restored version, in memory that does not grow with the scan."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from .color_fix import fix_colors, make_gray
from .model import S3Diff
from .options import MULTIPLE, Restoration
from .scan import EnlargedScan
from .tiling import blend, enlarged, spans, strips

LATENTS = MULTIPLE // 8
"""Latents along ``MULTIPLE`` pixels."""

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

    Beside the scans, the result and its latents, a 48th of it, only a few tiles are in memory.

    Args:
        model: On any device.
        rgb: The scans (N, 3, H, W), of any size and depth.
        options: How.
        on_tile: Called after each tile that DE-Net, the encoder, the UNet or the decoder has done.

    Returns:
        float32 (N, 3, scale * H, scale * W) in [0, 1] on the CPU.
    """
    options = options or Restoration()
    scan, device = EnlargedScan(rgb, options.scale), model.prompts.device
    # In units of 64 pixels: where a tile begins, the UNet samples as it would in the whole.
    height, width, tile = (side // MULTIPLE for side in (*scan.padded, options.tile))
    overlap = math.ceil(tile / 3)  # As published for 12 units; one of 4 would leave seams.
    down, across = (spans(side, tile, overlap) for side in (height, width))
    estimates = [len(strips(side, options.tile)) for side in rgb.shape[-2:]]
    total = math.prod(estimates) + 3 * len(down) * len(across)
    done = 0

    def count() -> None:
        nonlocal done
        done += 1
        if on_tile is not None:
            on_tile(done, total)

    def encoded(noise: Tensor, rows: slice, columns: slice) -> Tensor:
        pixels = scan(enlarged(rows, MULTIPLE), enlarged(columns, MULTIPLE))
        mean, spread = model.encode(pixels.to(device))
        return mean + spread * noise

    def passed(
        latents: Tensor, work: Callable[[Tensor, slice, slice], Tensor], channels: int, unit: int
    ) -> Tensor:
        """What becomes of the latents, tile by tile."""

        def of_tile(rows: slice, columns: slice) -> Tensor:
            part = latents[..., enlarged(rows, LATENTS), enlarged(columns, LATENTS)]
            return work(part.to(device), rows, columns)

        out = torch.empty(len(rgb), channels, unit * height, unit * width)
        return blend(out, down, across, unit, of_tile, count)

    with model.adapted(model.de_net(rgb, options.tile, count)):
        latents = _noise(LATENTS * height, LATENTS * width, options.seed)
        latents = passed(latents, encoded, 4, LATENTS)
        latents = passed(latents, lambda z, *_: model.step(z, options.guidance), 4, LATENTS)
        result = passed(latents, lambda z, *_: model.decode(z), 3, MULTIPLE)
    result = result[..., : scan.size[0], : scan.size[1]]
    fix_colors(result, lambda rows: scan(rows, slice(0, scan.size[1])), options.color_fix)
    return make_gray(result) if options.gray else result


def _noise(height: int, width: int, seed: int | None) -> Tensor:
    """One picture's noise for all of them, so that each gets what it gets alone; None: zeros."""
    noise = torch.zeros(1, 4, height, width)
    return noise if seed is None else noise.normal_(generator=torch.Generator().manual_seed(seed))
