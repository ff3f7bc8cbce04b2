"""Nano in ComfyUI, the graph that colorizes with it, and small models of the kinds that do not fit.

For the tests that call ``need_comfyui``.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

from comfy.model_patcher import ModelPatcher
from torch import Tensor

from tests.node_runs import run


class Models(NamedTuple):
    """What Load ColorFLUX Bundle gives, in its order."""

    model: ModelPatcher
    control_net: Any
    style_model: Any
    clip_vision: Any
    vae: Any
    canvas_pixels: int


@functools.cache
def nano(lora_strength: float = 1.0) -> Models:
    return Models(*run("ColorFlux_LoadBundle", lora_strength=lora_strength))


def sample(
    models: Models,
    conditioning: Any,
    latent: dict[str, Tensor],
    size: tuple[int, int],
    steps: int = 8,
) -> Tensor:
    """KSampler's latents at (width, height), set as in our workflows."""
    width, height = size
    (model,) = run("ModelSamplingFlux", model=models.model, width=width, height=height)
    (sampled,) = run(
        "KSampler",
        model=model,
        positive=conditioning,
        negative=conditioning,
        latent_image=latent,
        steps=steps,
        cfg=1.0,
        sampler_name="euler",
        scheduler="simple",
    )
    return sampled["samples"]


def colorized(
    models: Models,
    photos: Tensor,
    *,
    canvas: str = "square",
    pixels: int = 128,
    same_noise: bool = False,
    **prompt: Any,
) -> Tensor:
    """The decoded canvas of IMAGEs, as our workflows wire it; ``prompt`` goes to Redux."""
    gray, latent, *size = run("ColorFlux_PreparePhoto", image=photos, canvas=canvas, pixels=pixels)
    if same_noise:
        (latent,) = run("LatentBatchSeedBehavior", samples=latent, seed_behavior="fixed")
    (conditioning,) = run(
        "ColorFlux_ReduxVisualPrompt",
        clip_vision=models.clip_vision,
        style_model=models.style_model,
        image=gray,
        **prompt,
    )
    (conditioning,) = run(
        "ColorFlux_ApplyGrayControlNet",
        conditioning=conditioning,
        control_net=models.control_net,
        image=gray,
        vae=models.vae,
    )
    latents = sample(models, conditioning, latent, (size[0], size[1]))
    return run("VAEDecode", samples={"samples": latents}, vae=models.vae)[0]
