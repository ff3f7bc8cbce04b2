"""Our Pro-DPO has the loss of diffusers' Diffusion-DPO example, ported to FLUX and a ControlNet."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import pytest
import torch

from benchmarks.pro_dpo import Ground, Side, diffusers_example, make_photos, ours, write_manifest
from tests.nano_models import tiny_pipeline
from training.data.order import row_order


@pytest.mark.parametrize("pairs", [1, 0], ids=["kept", "fresh"])
def test_losses_are_those_of_the_example(tmp_path: Path, pairs: int) -> None:
    tiny_pipeline().save_pretrained(tmp_path / "base")
    make_photos(tmp_path, 32)
    base = tmp_path / "base"
    ground = Ground(tmp_path, tmp_path, 4, pairs, base, canvas=32, text_tokens=2, rank=4)
    write_manifest(ground)
    expected = losses(diffusers_example, ground)
    assert expected.std() > 0.01
    # Beta is 1000: what an error of 1 loses in float32 is a ten-thousandth of a logit.
    torch.testing.assert_close(losses(ours, ground), expected, atol=2e-4, rtol=0)


@torch.no_grad()
def losses(side: Side, ground: Ground) -> torch.Tensor:
    """Of a few steps, for a LoRA that has learned something."""
    model, rows, loss = side(ground.config())
    torch.manual_seed(0)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.normal_(std=0.1)
    return torch.stack([loss(places) for places in islice(row_order(rows, 4, 0, 0), 3)])
