from __future__ import annotations

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from colorflux_core.color import grayscale, rgb_to_ycbcr
from colorflux_core.latents import decode, encode
from tests.tiny_training import synthetic_photo
from training.linear_vae import LATENTS, LUMA_LATENTS, PATCH, build_vae, principal_components


def photos(first: int, count: int, size: tuple[int, int] = (48, 64)) -> Tensor:
    """(N, 3, height, width) in [0, 1]."""
    height, width = size
    resized = [
        synthetic_photo(seed).resize((width, height), Image.Resampling.BICUBIC)
        for seed in range(first, first + count)
    ]
    return torch.stack([torch.from_numpy(np.array(p)).permute(2, 0, 1) for p in resized]) / 255


@pytest.fixture(scope="module")
def seen() -> Tensor:
    return photos(0, 24)


@pytest.fixture(scope="module")
def vae(seen: Tensor) -> AutoencoderKL:
    torch.manual_seed(0)
    return build_vae(seen).eval()


def patches(images: Tensor) -> Tensor:
    """(patches, 3, 8, 8) in [-1, 1]."""
    cut = F.unfold(images * 2 - 1, PATCH, stride=PATCH).transpose(1, 2)
    return cut.reshape(-1, 3, PATCH, PATCH)


@torch.no_grad()
def test_the_encoder_is_one_convolution_with_the_whitened_components(
    seen: Tensor, vae: AutoencoderKL
) -> None:
    mean, analysis = principal_components(seen)
    for images in (seen, photos(100, 3), photos(100, 2, (8, 24)), torch.zeros(1, 3, 16, 16)):
        offset = torch.einsum("kchw,chw->k", analysis, mean)
        expected = F.conv2d(images * 2 - 1, analysis, -offset, stride=PATCH)
        torch.testing.assert_close(encode(vae, images), expected, rtol=3e-3, atol=1e-2)


def test_the_components_are_those_of_a_plain_pca(seen: Tensor) -> None:
    """Variance 1, uncorrelated within luma and within chroma, and no 10 others explain more."""
    mean, analysis = principal_components(seen)
    cut = patches(seen).double()
    torch.testing.assert_close(cut.mean(0).float(), mean, rtol=0, atol=1e-5)
    scores = (cut - cut.mean(0)).flatten(1) @ analysis.double().flatten(1).T
    covariance = scores.T @ scores / len(scores)
    for block in (slice(0, LUMA_LATENTS), slice(LUMA_LATENTS, LATENTS)):
        size = covariance[block, block].shape[0]
        torch.testing.assert_close(
            covariance[block, block], torch.eye(size, dtype=torch.double), rtol=0, atol=1e-4
        )
    luma = rgb_to_ycbcr(cut)[:, 0].flatten(1)
    luma = luma - luma.mean(0)
    explained = torch.linalg.lstsq(scores[:, :LUMA_LATENTS], luma).solution
    left = (luma - scores[:, :LUMA_LATENTS] @ explained).square().sum()
    best = torch.linalg.svdvals(luma)[LUMA_LATENTS:].square().sum()
    assert left.item() == pytest.approx(best.item(), rel=1e-4)


def test_less_whitening_leaves_detail_smaller(seen: Tensor) -> None:
    """The same components, each at a power of its share, chroma ``chroma_scale`` times as large."""
    white, partly = (
        principal_components(seen, *scales)[1].flatten(1) for scales in ((1.0, 1.0), (0.5, 2.0))
    )
    torch.testing.assert_close(
        torch.nn.functional.normalize(white).abs(), torch.nn.functional.normalize(partly).abs()
    )
    ratio = partly.norm(dim=1) / white.norm(dim=1)
    assert ratio[0].item() == pytest.approx(1, abs=1e-3)
    assert ratio[LUMA_LATENTS].item() == pytest.approx(2, abs=1e-3)
    assert (ratio[1:LUMA_LATENTS] < ratio[: LUMA_LATENTS - 1] + 1e-6).all()


@torch.no_grad()
def test_gray_photos_keep_their_luma_latents_and_have_one_chroma(vae: AutoencoderKL) -> None:
    color = photos(100, 4)
    colored, monochrome = encode(vae, color), encode(vae, grayscale(color))
    torch.testing.assert_close(
        monochrome[:, :LUMA_LATENTS], colored[:, :LUMA_LATENTS], rtol=0, atol=1e-2
    )
    chroma = monochrome[:, LUMA_LATENTS:]
    assert (chroma - chroma[:1, :, :1, :1]).abs().max() < 1e-2
    assert colored[:, LUMA_LATENTS:].std(dim=(0, 2, 3)).min() > 0.3


@torch.no_grad()
def test_the_decoder_starts_with_every_patchs_mean_color(seen: Tensor, vae: AutoencoderKL) -> None:
    """As far as 16 numbers tell it: the mean of the best linear reconstruction."""
    images = photos(100, 4)
    mean, analysis = principal_components(seen)
    latents = encode(vae, images)
    synthesis = torch.linalg.pinv(analysis.flatten(1)).T.view_as(analysis)
    reconstruction = torch.einsum("bkij,kchw->bcijhw", latents, synthesis)
    reconstruction += mean[None, :, None, None]
    blocks = (reconstruction.mean(dim=(-1, -2)) / 2 + 0.5).clamp(0, 1)
    painted = decode(vae, latents)
    expected = blocks.repeat_interleave(PATCH, 2).repeat_interleave(PATCH, 3)
    torch.testing.assert_close(painted, expected, rtol=0, atol=1e-2)
    true_blocks = F.avg_pool2d(images, PATCH)
    assert (F.avg_pool2d(painted, PATCH) - true_blocks).abs().mean() < 0.02


def test_latents_are_kept_as_they_are(vae: AutoencoderKL) -> None:
    """FLUX's layout, 16 channels at 1/8 size, already of unit variance."""
    assert (vae.config.scaling_factor, vae.config.shift_factor) == (1.0, 0.0)
    with torch.no_grad():
        assert encode(vae, torch.rand(2, 3, 32, 48)).shape == (2, 16, 4, 6)
