"""ComfyUI's IMAGE (B, H, W, C) <-> the core's (B, 3, H, W), both float in [0, 1]."""

from __future__ import annotations

from collections.abc import Callable

import comfy.utils
from torch import Tensor

from ..colorflux_core.errors import ColorFluxError
from ..colorflux_core.photos.color import unit_range


def from_image(image: Tensor, where: str) -> Tensor:
    """A view (B, 3, H, W) of an IMAGE with one channel, three, or four, without the alpha.

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
    return image[..., :3].movedim(-1, 1).expand(-1, 3, -1, -1)


def in_range(rgb: Tensor) -> Tensor:
    """Float32 in [0, 1], whatever other nodes have made."""
    return unit_range(rgb).float().clamp(0, 1)


def to_image(rgb: Tensor) -> Tensor:
    """The IMAGE of (B, 3, H, W)."""
    return rgb.movedim(1, -1).contiguous()


def each_frame(work: Callable[..., Tensor], *batches: Tensor) -> Tensor:
    """What ``work`` makes of each frame, with ComfyUI's progress and Cancel.

    Args:
        work: Given one frame (1, 3, H, W) of each batch, in range, returns (1, ...).
        batches: Of one length, as :func:`from_image` gives them.

    Returns:
        (B, ...). Films are large, so that beside it only one frame is in memory.
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
