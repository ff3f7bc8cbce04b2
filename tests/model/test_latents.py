from __future__ import annotations

import pytest
import torch

from colorflux_core.errors import ColorFluxError
from colorflux_core.model.latents import decode, encode, image_ids, pack, unpack
from tests.flux_models import tiny_vae


@pytest.mark.parametrize(("height", "width"), [(2, 2), (2, 6), (14, 4)])
def test_tokens_are_2x2_patches_in_reading_order(height: int, width: int) -> None:
    latents = torch.randn(2, 16, height, width)
    tokens = pack(latents)
    positions = image_ids(height, width, dtype=torch.long)
    for token, (_, row, column) in enumerate(positions.tolist()):
        patch = latents[:, :, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2]
        assert torch.equal(tokens[:, token], patch.flatten(1))
    assert torch.equal(unpack(tokens, height, width), latents)


@pytest.mark.parametrize(("height", "width"), [(3, 4), (4, 3)])
def test_odd_latents_are_refused(height: int, width: int) -> None:
    with pytest.raises(ColorFluxError, match="multiples of 16"):
        pack(torch.zeros(1, 16, height, width))
    with pytest.raises(ColorFluxError, match="multiples of 16"):
        unpack(torch.zeros(1, 3, 64), height, width)
    with pytest.raises(ColorFluxError, match="multiples of 16"):
        image_ids(height, width)


def test_encode_scales_the_posterior_mode_of_minus_one_to_one() -> None:
    vae = tiny_vae(scaling_factor=0.5, shift_factor=0.25)
    rgb = torch.rand(2, 3, 16, 24)
    mean = vae.encode(2 * rgb - 1).latent_dist.mean
    torch.testing.assert_close(encode(vae, rgb), (mean - 0.25) * 0.5)


@pytest.mark.parametrize("shift", [0.25, None])
def test_decode_undoes_the_scaling_and_clips(shift: float | None) -> None:
    vae = tiny_vae(scaling_factor=0.01, shift_factor=shift)
    rgb = torch.rand(1, 3, 16, 24)
    mode = 40 * vae.encode(2 * rgb - 1).latent_dist.mean
    image = decode(vae, (mode - (shift or 0.0)) * 0.01)
    expected = (vae.decode(mode).sample + 1) / 2
    assert expected.min() < 0 or expected.max() > 1
    torch.testing.assert_close(image, expected.clamp(0, 1))


def test_a_half_precision_vae_takes_and_gives_float_images() -> None:
    vae = tiny_vae().bfloat16()
    image = decode(vae, encode(vae, torch.rand(1, 3, 16, 16)).float())
    assert image.dtype == torch.float32


def test_images_off_the_grid_are_refused() -> None:
    with pytest.raises(ColorFluxError, match="20x16"):
        encode(tiny_vae(), torch.zeros(1, 3, 16, 20))
