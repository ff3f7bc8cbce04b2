"""Colorize one photo at its own size."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..photos.color import require_rgb, unit_range
from ..photos.resize import Resizing
from .pipeline import ColorFluxPipeline
from .settings import Settings


def colorize(
    pipeline: ColorFluxPipeline,
    rgb: Tensor,
    settings: Settings,
    reference: Tensor | None = None,
    on_step: Callable[[int, int], None] | None = None,
) -> Tensor:
    """Resize a photo to the canvas, colorize it, and resize it back (paper 5.1, Inference).

    The noise comes from a CPU generator, so a seed gives the same noise on every device.

    Args:
        pipeline: The model.
        rgb: The photo (3, H, W) of any size and bit depth; its colors, if any, are not used.
        settings: Canvas, steps, strengths and seed.
        reference: A color picture (3, H', W') for the visual prompt, instead of the photo.
        on_step: Progress callback (steps done, total steps). It may raise to cancel.

    Returns:
        float32 (3, H, W) in [0, 1] on the CPU.

    Raises:
        ColorFluxError: when the photo or the reference is not an RGB picture, and as
            ``ColorFluxPipeline.__call__``.
    """

    def report(_: Any, step: int, __: Tensor, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        if on_step is not None:
            on_step(step + 1, settings.steps)
        return tensors

    require_rgb(rgb)
    if reference is not None:
        require_rgb(reference, "The reference")
    resizing = Resizing.onto(settings.canvas, (rgb.shape[-2], rgb.shape[-1]))
    photo = resizing.to_canvas(rgb)
    colorized: Tensor = pipeline(
        photo[None],
        reference=None if reference is None else unit_range(reference)[None],
        num_inference_steps=settings.steps,
        guidance_scale=settings.guidance,
        controlnet_conditioning_scale=settings.control_scale,
        control_guidance_start=settings.control_start,
        control_guidance_end=settings.control_end,
        control_mode=settings.control_mode,
        lora_scale=settings.lora_scale,
        text_tokens=settings.text_tokens,
        generator=torch.Generator("cpu").manual_seed(settings.seed),
        callback_on_step_end=report,
        return_dict=False,
    )[0][0]
    return resizing.back(colorized.cpu(), rgb, settings.detail)
