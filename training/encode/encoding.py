"""Encoded pictures, computed once and cached: latents, image tokens and color statistics."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import torch
from torch import Tensor

from colorflux_core.bundles.components import part_path
from colorflux_core.digest import digest
from colorflux_core.errors import ColorFluxError
from colorflux_core.model.latents import encode, pack
from colorflux_core.model.visual_prompt import image_tokens
from colorflux_core.photos.color import colorfulness, hsv_statistics

from ..config import LoopConfig
from ..data.order import SampleIndex
from ..data.pictures import Picture
from ..models.parts import Parts, PartsConfig, feature_extractor, source
from .cache import Encode, TensorCache, encode_missing


@dataclass(frozen=True)
class CachedColumn:
    """A column of `Rows` that is read from a cache."""

    cache: TensorCache
    keys: list[str]
    dtype: torch.dtype

    def __call__(self, index: SampleIndex) -> Tensor:
        return self.cache[self.keys[index.row]].to(self.dtype)


def cached_latents(parts: Parts, pictures: list[Picture]) -> CachedColumn:
    """Packed latents (L, 64) of each picture in float32, cached as float16 in mixed precision."""
    return cached_column(
        parts.config, "latents", ("vae",), pictures, lambda: latent_encoder(parts), torch.float32
    )


def cached_tokens(parts: Parts, pictures: list[Picture]) -> CachedColumn:
    """The vision tower's tokens (T, D) of each picture, in bfloat16 in mixed precision."""
    return cached_column(
        parts.config,
        "tokens",
        ("image_encoder", "feature_extractor"),
        pictures,
        lambda: token_encoder(parts),
        cache_dtype(parts.config, torch.bfloat16),
    )


def cache_dtype(config: LoopConfig, half: torch.dtype) -> torch.dtype:
    """float32 in full precision, ``half`` in mixed precision."""
    return torch.float32 if config.precision == "no" else half


def cached_pixels(config: LoopConfig, pictures: list[Picture]) -> CachedColumn:
    """The pictures' pixels, uint8 (3, S, S), so that photos are not decoded in every step."""
    cache = TensorCache(config.cache / "pixels-1")
    encode_missing(cache, pictures, lambda: lambda rgb: (rgb * 255).round().byte(), config.workers)
    return CachedColumn(cache, [picture.key for picture in pictures], torch.uint8)


def color_statistics(config: LoopConfig, pictures: list[Picture]) -> Tensor:
    """Colorfulness (from 0), mean HSV saturation and value (in [0, 1]) of each picture (N, 3)."""

    def measure(rgb: Tensor) -> Tensor:
        return torch.stack([colorfulness(rgb), *hsv_statistics(rgb)], dim=1)

    cache = TensorCache(config.cache / "statistics-1")
    encode_missing(cache, pictures, lambda: measure, config.workers)
    return torch.stack([cache[picture.key] for picture in pictures])


def latent_encoder(parts: Parts) -> Encode:
    """Pictures (B, 3, S, S) in [0, 1] to packed latents (B, L, 64)."""
    dtype = cache_dtype(parts.config, torch.float16)
    vae = parts.load("vae", dtype=torch.float32).to(parts.device)
    vae.enable_slicing()
    return with_autocast(parts, lambda rgb: pack(encode(vae, rgb)).to(dtype))


def token_encoder(parts: Parts) -> Encode:
    """Pictures (B, 3, S, S) in [0, 1] to image tokens (B, T, D)."""
    dtype = cache_dtype(parts.config, torch.bfloat16)
    tower = parts.load("image_encoder", dtype=torch.float32).to(parts.device)
    processor = feature_extractor(parts.config)
    return with_autocast(parts, lambda rgb: image_tokens(tower, processor, rgb).to(dtype))


def with_autocast(parts: Parts, encode: Encode) -> Encode:
    """Wrap ``encode`` in no_grad and in the autocast of ``--precision``."""
    dtype = parts.config.autocast

    @torch.no_grad()
    def wrapped(rgb: Tensor) -> Tensor:
        with torch.autocast(parts.device.type, dtype, enabled=dtype is not None):
            return encode(rgb)

    return wrapped


def cached_column(
    config: PartsConfig,
    name: str,
    encoder_parts: tuple[str, ...],
    pictures: list[Picture],
    make_encode: Callable[[], Encode],
    dtype: torch.dtype,
) -> CachedColumn:
    """A cached column, identified by the pictures, the encoder's files and the precision.

    Raises ColorFluxError, which names the flag, if a part of the encoder is missing.
    """
    flag, base = source(config, encoder_parts[0])
    try:
        encoder = fingerprint(*(part_path(part, base) for part in encoder_parts))
    except ColorFluxError as error:
        raise ColorFluxError(f"--{flag} {base}: {error}") from error
    cache = TensorCache(config.cache / f"{name}-{encoder[:16]}-{config.precision}")
    encode_missing(cache, pictures, make_encode, config.workers)
    return CachedColumn(cache, [picture.key for picture in pictures], dtype)


def fingerprint(*paths: Path) -> str:
    """Digest of the contents of model files, or of the files in model folders."""
    files = [sorted(path.glob("*.[js]*")) if path.is_dir() else [path] for path in paths]
    return digest(*(file.read_bytes() for file in chain(*files)))
