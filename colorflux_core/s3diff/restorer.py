"""Restore scans of any size in tiles, with bounded memory."""

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
"""``MULTIPLE`` pixels in latents."""

Report = Callable[[int, int], None]
"""Progress callback (tiles done, total tiles); an exception in it aborts the restoration."""


@torch.no_grad()
def restore(
    model: S3Diff,
    rgb: Tensor,
    options: Restoration | None = None,
    on_tile: Report | None = None,
) -> Tensor:
    """Remove noise and blur from a batch of scans; each result is independent of the batch.

    Memory holds the scans, the result, its latents (1/48 of the result) and a few tiles.

    Args:
        model: S3Diff on any device.
        rgb: The scans (N, 3, H, W), float in [0, 1] or an integer dtype.
        options: Settings; the defaults if omitted.
        on_tile: Called after each tile processed by DE-Net, the encoder, the UNet or the decoder.

    Returns:
        float32 (N, 3, scale * H, scale * W) in [0, 1] on the CPU.
    """
    options = options or Restoration()
    scan, device = EnlargedScan(rgb, options.scale), model.prompts.device
    # In units of 64 pixels, so that the UNet downsamples a tile on the same grid as a full image.
    height, width, tile = (side // MULTIPLE for side in (*scan.padded, options.tile))
    overlap = math.ceil(
        tile / 3
    )  # As published for 12 units; 4 units with an overlap of 1 leave seams.
    down, across = (spans(side, tile, overlap) for side in (height, width))
    estimates = [len(strips(side, options.tile)) for side in rgb.shape[-2:]]
    total = math.prod(estimates) + 3 * len(down) * len(across)
    done = 0

    def count() -> None:
        nonlocal done
        done += 1
        if on_tile is not None:
            on_tile(done, total)

    def encode(noise: Tensor, rows: slice, columns: slice) -> Tensor:
        pixels = scan(enlarged(rows, MULTIPLE), enlarged(columns, MULTIPLE))
        mean, spread = model.encode(pixels.to(device))
        return mean + spread * noise

    def in_tiles(
        latents: Tensor, work: Callable[[Tensor, slice, slice], Tensor], channels: int, unit: int
    ) -> Tensor:
        """Apply ``work`` to the latents tile by tile and blend the results."""

        def process_tile(rows: slice, columns: slice) -> Tensor:
            part = latents[..., enlarged(rows, LATENTS), enlarged(columns, LATENTS)]
            return work(part.to(device), rows, columns)

        out = torch.empty(len(rgb), channels, unit * height, unit * width)
        return blend(out, down, across, unit, process_tile, count)

    with model.adapted(model.de_net(rgb, options.tile, count)):
        latents = _noise(LATENTS * height, LATENTS * width, options.seed)
        latents = in_tiles(latents, encode, 4, LATENTS)
        latents = in_tiles(latents, lambda z, *_: model.step(z, options.guidance), 4, LATENTS)
        result = in_tiles(latents, lambda z, *_: model.decode(z), 3, MULTIPLE)
    result = result[..., : scan.size[0], : scan.size[1]]
    fix_colors(result, lambda rows: scan(rows, slice(0, scan.size[1])), options.color_fix)
    return make_gray(result) if options.gray else result


def _noise(height: int, width: int, seed: int | None) -> Tensor:
    """Noise (1, 4, height, width) shared by the batch, so results do not depend on it."""
    noise = torch.zeros(1, 4, height, width)
    return noise if seed is None else noise.normal_(generator=torch.Generator().manual_seed(seed))
