"""ComfyUI's IMAGE (B, H, W, C) <-> the core's (B, 3, H, W), both float in [0, 1]."""

from __future__ import annotations

from collections.abc import Callable

import comfy.utils
import torch
from torch import Tensor

from ..colorflux_core.errors import ColorFluxError


def from_image(image: Tensor, where: str) -> Tensor:
    """(B, 3, H, W) of an IMAGE with one channel, three, or three and alpha, which is left out.

    Args:
        image: What came in.
        where: Node and input, for the message.

    Raises:
        ColorFluxError: for masks, latents and empty pictures.
    """
    shape = "x".join(map(str, getattr(image, "shape", ("nothing",))))
    if not isinstance(image, Tensor) or image.ndim != 4 or image.shape[-1] not in (1, 3, 4):
        raise ColorFluxError(
            f"{where} has {shape}, which is no picture: connect an IMAGE. "
            "A mask becomes one with Convert Mask to Image, a latent with VAE Decode."
        )
    if image.numel() == 0:
        raise ColorFluxError(f"{where} has {shape}, a picture without pixels: connect another.")
    rgb = image[..., :3].movedim(-1, 1).float()
    return rgb.expand(-1, 3, -1, -1).clamp(0, 1)


def to_image(rgb: Tensor) -> Tensor:
    """The IMAGE of (B, 3, H, W)."""
    return rgb.movedim(1, -1).contiguous()


def each_frame(count: int, work: Callable[[int], Tensor]) -> Tensor:
    """The results (1, ...) of all frames as (count, ...), with ComfyUI's progress and Cancel."""
    progress = comfy.utils.ProgressBar(count)
    results = []
    for frame in range(count):
        results.append(work(frame))
        progress.update(1)
    return torch.cat(results)
