"""Converts between ComfyUI's IMAGE (B, H, W, C) and the core's (B, 3, H, W), in [0, 1]."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import comfy.utils
from torch import Tensor

from ..colorflux_core.errors import ColorFluxError
from ..colorflux_core.photos.color import unit_range

Conditioning = list[tuple[Tensor, dict[str, Any]]]
"""ComfyUI's CONDITIONING: prompts (1, T, D), each with its options."""


def from_image(image: Tensor, where: str) -> Tensor:
    """A view (B, 3, H, W) of an IMAGE with 1, 3 or 4 channels, without alpha.

    Args:
        image: The node's input.
        where: Node and input, for error messages.

    Raises:
        ColorFluxError: for masks, latents and empty pictures.
    """
    shape = "x".join(map(str, getattr(image, "shape", ("nothing",))))
    if not isinstance(image, Tensor) or image.ndim != 4 or image.shape[-1] not in (1, 3, 4):
        raise ColorFluxError(
            f"{where} has {shape}, which is not a picture: connect an IMAGE. "
            "A mask becomes one with Convert Mask to Image, a latent with VAE Decode."
        )
    if image.numel() == 0:
        raise ColorFluxError(f"{where} has {shape}, a picture without pixels: connect another.")
    return image[..., :3].movedim(-1, 1).expand(-1, 3, -1, -1)


def in_range(rgb: Tensor) -> Tensor:
    """Convert to float32 and clamp to [0, 1], since other nodes' images may be out of range."""
    return unit_range(rgb).float().clamp(0, 1)


def to_image(rgb: Tensor) -> Tensor:
    """(B, 3, H, W) as an IMAGE (B, H, W, 3)."""
    return rgb.movedim(1, -1).contiguous()


def each_frame(work: Callable[..., Tensor], *batches: Tensor) -> Tensor:
    """Apply ``work`` to each frame, with ComfyUI's progress bar and Cancel.

    Videos are large: apart from the result, only one frame at a time is in memory.

    Args:
        work: Maps one frame (1, 3, H, W) of each batch, in [0, 1], to (1, ...).
        batches: Batches of equal length, as returned by :func:`from_image`.

    Returns:
        The results (B, ...).
    """
    count = len(batches[0])
    progress = comfy.utils.ProgressBar(count)
    for i in range(count):
        (result,) = work(*(in_range(batch[i : i + 1]) for batch in batches))
        if i == 0:
            results = result.new_empty(count, *result.shape)
        results[i] = result
        progress.update(1)
    return results
