"""A restoration takes no more memory for a larger scan, beside the scan and the result."""

from __future__ import annotations

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor

from benchmarks.s3diff import finished, run_alone
from colorflux_core.s3diff import color_fix
from colorflux_core.s3diff.degradation import DegradationEstimator
from colorflux_core.s3diff.model import S3Diff
from tests.s3diff import models as tiny


def narrow_model() -> S3Diff:
    unet = UNet2DConditionModel(**tiny.UNET | {"block_out_channels": (8,) * 4})
    vae = AutoencoderKL(**tiny.VAE | {"block_out_channels": (4,) * 4})
    model = S3Diff(unet, vae, torch.randn(2, 77, 24), 1, 1)
    model.de_net = DegradationEstimator(width=4)
    return model.eval()


def in_small_pieces(model: S3Diff, scan: Tensor) -> Tensor:
    color_fix.STRIP_PIXELS = 2**15
    return finished(model, scan, tile=256)


def test_memory_does_not_grow_with_the_scan(monkeypatch: pytest.MonkeyPatch) -> None:
    # What is freed goes back to the system.
    monkeypatch.setenv("MALLOC_MMAP_THRESHOLD_", "65536")
    small, large = (run_alone(in_small_pieces, narrow_model, height, 256) for height in (512, 4096))
    grown = (large.picture.nbytes - small.picture.nbytes) / 2**20
    # The latents, a 48th of the result, are there a few times; a second result would be too much.
    assert large.beside - small.beside < grown / 2
