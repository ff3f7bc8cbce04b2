"""Conversions between images, VAE latents and the transformer's tokens, as in FLUX.1."""

from __future__ import annotations

import torch
from diffusers import AutoencoderKL
from diffusers.image_processor import VaeImageProcessor
from torch import Tensor

from ..errors import ColorFluxError


def encode(vae: AutoencoderKL, rgb: Tensor) -> Tensor:
    """Scaled latents z_0 of an image: the mode of the posterior, which is deterministic.

    rgb (B, 3, H, W) in [0, 1]; returns (B, 16, H/8, W/8) in the VAE's dtype, scaled to about
    unit variance by `(z - shift) * scale`.

    Raises ColorFluxError when H or W is not a multiple of the VAE's factor (8 for FLUX.1).
    """
    height, width = rgb.shape[-2:]
    factor = 2 ** (len(vae.config.block_out_channels) - 1)
    if height % factor or width % factor:
        raise ColorFluxError(
            f"The image is {width}x{height}; the VAE needs sides that are multiples of {factor}. "
            "Resize it to the canvas first."
        )
    pixels = VaeImageProcessor.normalize(rgb.to(vae.dtype))
    mode = vae.encode(pixels).latent_dist.mode()
    return (mode - _shift(vae)) * vae.config.scaling_factor


def decode(vae: AutoencoderKL, latents: Tensor) -> Tensor:
    """The image of scaled latents (B, 16, h, w): float32 (B, 3, 8h, 8w), clipped to [0, 1]."""
    unscaled = latents.to(vae.dtype) / vae.config.scaling_factor + _shift(vae)
    return VaeImageProcessor.denormalize(vae.decode(unscaled).sample).float()


def pack(latents: Tensor) -> Tensor:
    """Tokens (B, h/2 * w/2, 64) of latents (B, 16, h, w): each 2x2 patch becomes one token.

    Raises ColorFluxError when h or w is odd, that is, when the image's sides are not multiples
    of 16.
    """
    batch, channels, height, width = latents.shape
    _require_even(height, width)
    patches = latents.reshape(batch, channels, height // 2, 2, width // 2, 2)
    return patches.permute(0, 2, 4, 1, 3, 5).reshape(batch, -1, 4 * channels)


def unpack(tokens: Tensor, height: int, width: int) -> Tensor:
    """The inverse of `pack`: latents (B, 16, height, width), sizes in latent pixels."""
    _require_even(height, width)
    batch, channels = len(tokens), tokens.shape[-1] // 4
    patches = tokens.reshape(batch, height // 2, width // 2, channels, 2, 2)
    return patches.permute(0, 3, 1, 4, 2, 5).reshape(batch, channels, height, width)


def image_ids(
    height: int,
    width: int,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Rotary positions (h/2 * w/2, 3), each (0, row, column), of `height` x `width` latents."""
    _require_even(height, width)
    ids = torch.zeros(height // 2, width // 2, 3, device=device)
    ids[..., 1] = torch.arange(height // 2, device=device)[:, None]
    ids[..., 2] = torch.arange(width // 2, device=device)
    return ids.flatten(0, 1).to(dtype=dtype)


def _shift(vae: AutoencoderKL) -> float:
    return vae.config.shift_factor or 0.0


def _require_even(height: int, width: int) -> None:
    if height % 2 or width % 2:
        raise ColorFluxError(
            f"Latents of {width}x{height} cannot be divided into 2x2 patches. "
            "Use a canvas whose sides are multiples of 16 pixels."
        )
