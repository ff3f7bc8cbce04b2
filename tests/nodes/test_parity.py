"""The nodes, wired as in our workflows, against the headless pipeline: nano, the same noise."""

# ruff: noqa: E402  ComfyUI's modules are there only once need_comfyui has found them.

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from torch import Tensor

from colorflux_core.bundles.bundle import Bundle, load_bundle
from colorflux_core.bundles.components import FLUX_SCHEDULE
from colorflux_core.model.colorization import colorize
from colorflux_core.model.flow import set_timesteps
from colorflux_core.photos.canvas import Canvas
from colorflux_core.photos.resize import Resizing
from tests.nodes.node_runs import run
from tests.nodes.pack import need_comfyui

need_comfyui()

from comfy.samplers import KSampler

from tests.nodes.comfy_models import colorized, nano

TOLERANCE = 0.05 / 255  # 0.004 / 255 was measured; 2 / 255 is what is promised.
VISIBLE = 5 / 255


@functools.cache
def headless_nano() -> Bundle:
    bundle = load_bundle("nano")
    bundle.pipeline.set_progress_bar_config(disable=True)
    return bundle


def photos(count: int = 1) -> Tensor:
    """IMAGEs (count, H, W, 3) of one size, cut from an old photo."""
    (photo,) = run("ColorFlux_SamplePhoto")
    return torch.cat([photo[:, 100 * i : 100 * i + 300, :450] for i in range(count)])


def reference() -> Tensor:
    """Another picture, in glaring colors."""
    (photo,) = run("ColorFlux_SamplePhoto", photo="stdlib_allium-oreophilum.jpg")
    return (photo[:, :300, :400] * torch.tensor([1.4, 0.4, 0.6])).clamp(0, 1)


def headless(
    images: Tensor, canvas: Canvas, reference: Tensor | None = None, **options: Any
) -> Tensor:
    """The pipeline's decoded canvas of IMAGEs, as an IMAGE."""
    bundle = headless_nano()
    rgb = images.movedim(-1, 1)
    (decoded,) = bundle.pipeline(
        Resizing.onto(canvas, (rgb.shape[-2], rgb.shape[-1])).to_canvas(rgb),
        reference=None if reference is None else reference.movedim(-1, 1),
        text_tokens=bundle.settings.text_tokens,
        generator=torch.Generator("cpu").manual_seed(0),
        return_dict=False,
        **options,
    )
    return decoded.movedim(1, -1)


def difference(one: Tensor, other: Tensor) -> float:
    assert one.shape == other.shape
    return (one - other).abs().max().item()


def test_a_photo_comes_back_as_from_the_command_line() -> None:
    models, bundle, images = nano(), headless_nano(), photos()
    decoded = colorized(models, images, pixels=models.canvas_pixels)
    assert difference(decoded, headless(images, Canvas("square", 256))) < TOLERANCE
    settings = bundle.settings
    (back,) = run("ColorFlux_ResizeBack", image=decoded, original=images, detail=settings.detail)
    expected = colorize(bundle.pipeline, images[0].movedim(-1, 0), settings)
    assert difference(back[0].movedim(-1, 0), expected) < TOLERANCE


@pytest.mark.parametrize("strength", [0.0, 0.5, 1.0])
def test_the_loras_strength_means_the_same(strength: float) -> None:
    decoded = colorized(nano(strength), photos())
    expected = headless(photos(), Canvas("square", 128), lora_scale=strength)
    assert difference(decoded, expected) < TOLERANCE
    if strength != 1:
        assert difference(decoded, colorized(nano(), photos())) > VISIBLE


def test_aspect_canvas() -> None:
    decoded = colorized(nano(), photos(), canvas="aspect")
    assert decoded.shape[1] < decoded.shape[2]
    assert difference(decoded, headless(photos(), Canvas("aspect", 128))) < TOLERANCE


def test_reference() -> None:
    decoded = colorized(nano(), photos(), reference=reference())
    expected = headless(photos(), Canvas("square", 128), reference=reference())
    assert difference(decoded, expected) < TOLERANCE
    assert difference(decoded, colorized(nano(), photos())) > VISIBLE


def test_a_batch_has_noise_of_its_own_for_each_frame() -> None:
    decoded = colorized(nano(), photos(2))
    assert difference(decoded, headless(photos(2), Canvas("square", 128))) < TOLERANCE


def test_frames_with_the_same_noise_are_as_each_alone() -> None:
    together = colorized(nano(), photos(2), same_noise=True)
    alone = torch.cat([colorized(nano(), photo[None]) for photo in photos(2)])
    assert difference(together, alone) < TOLERANCE


def test_equal_frames_share_their_prompt_with_themselves() -> None:
    twice = photos().expand(2, -1, -1, -1)
    shared = colorized(nano(), twice, same_noise=True, frames="one shared prompt")
    assert difference(shared[:1], shared[1:]) < TOLERANCE
    assert difference(shared[:1], colorized(nano(), photos())) < TOLERANCE


# "simple" picks from a table of 10,000 sigmas, in which 7 and 30 steps fall between two rows.
@pytest.mark.parametrize(("steps", "tolerance"), [(4, 1e-7), (8, 1e-7), (7, 4e-4), (30, 4e-4)])
@pytest.mark.parametrize("size", [(128, 128), (512, 768), (1024, 1024), (1344, 768)])
def test_ksamplers_sigmas_are_those_of_diffusers(
    size: tuple[int, int], steps: int, tolerance: float
) -> None:
    cpu, (width, height) = torch.device("cpu"), size
    (model,) = run("ModelSamplingFlux", model=nano().model, width=width, height=height)
    scheduler = FlowMatchEulerDiscreteScheduler(**FLUX_SCHEDULE)
    set_timesteps(scheduler, steps, width * height // 16**2, cpu)
    sigmas = KSampler(model, steps, cpu, "euler", "simple").sigmas
    assert difference(sigmas, scheduler.sigmas) < tolerance
