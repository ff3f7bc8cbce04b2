"""What pictures are encoded into, once: latents, image tokens and color statistics."""

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
from .cache import Encode, Store, fill


@dataclass(frozen=True)
class Cached:
    """A column read from a store."""

    store: Store
    keys: list[str]
    dtype: torch.dtype

    def __call__(self, index: SampleIndex) -> Tensor:
        return self.store[self.keys[index.row]].to(self.dtype)


def latents(parts: Parts, pictures: list[Picture]) -> Cached:
    """Packed latents (L, 64) of each picture as float32; half precision stores float16."""
    return cached(
        parts.config, "latents", ("vae",), pictures, lambda: latent_encoder(parts), torch.float32
    )


def tokens(parts: Parts, pictures: list[Picture]) -> Cached:
    """The vision tower's tokens (T, D) of each picture; half precision stores bfloat16."""
    return cached(
        parts.config,
        "tokens",
        ("image_encoder", "feature_extractor"),
        pictures,
        lambda: token_encoder(parts),
        kept_type(parts.config, torch.bfloat16),
    )


def kept_type(config: LoopConfig, half: torch.dtype) -> torch.dtype:
    return torch.float32 if config.precision == "no" else half


def stored_pixels(config: LoopConfig, pictures: list[Picture]) -> Cached:
    """The pictures themselves, uint8 (3, S, S), so that photos are not decoded at every step."""
    store = Store(config.cache / "pixels-1")
    fill(store, pictures, lambda: lambda rgb: (rgb * 255).round().byte(), config.workers)
    return Cached(store, [picture.key for picture in pictures], torch.uint8)


def statistics(config: LoopConfig, pictures: list[Picture]) -> Tensor:
    """Colorfulness, mean HSV saturation and mean HSV value of each picture (N, 3)."""

    def measure(rgb: Tensor) -> Tensor:
        return torch.stack([colorfulness(rgb), *hsv_statistics(rgb)], dim=1)

    store = Store(config.cache / "statistics-1")
    fill(store, pictures, lambda: measure, config.workers)
    return torch.stack([store[picture.key] for picture in pictures])


def latent_encoder(parts: Parts) -> Encode:
    kept = kept_type(parts.config, torch.float16)
    vae = parts.load("vae", dtype=torch.float32).to(parts.device)
    vae.enable_slicing()
    return in_precision(parts, lambda rgb: pack(encode(vae, rgb)).to(kept))


def token_encoder(parts: Parts) -> Encode:
    kept = kept_type(parts.config, torch.bfloat16)
    tower = parts.load("image_encoder", dtype=torch.float32).to(parts.device)
    processor = feature_extractor(parts.config)
    return in_precision(parts, lambda rgb: image_tokens(tower, processor, rgb).to(kept))


def in_precision(parts: Parts, encode: Encode) -> Encode:
    """``encode`` without gradients, under the autocast of ``--precision``."""
    dtype = parts.config.autocast

    @torch.no_grad()
    def encoded(rgb: Tensor) -> Tensor:
        with torch.autocast(parts.device.type, dtype, enabled=dtype is not None):
            return encode(rgb)

    return encoded


def cached(
    config: PartsConfig,
    name: str,
    encoder_parts: tuple[str, ...],
    pictures: list[Picture],
    make_encode: Callable[[], Encode],
    dtype: torch.dtype,
) -> Cached:
    """A cached column; its cache key is the picture, the encoder's files and the precision."""
    flag, base = source(config, encoder_parts[0])
    try:
        encoder = fingerprint(*(part_path(part, base) for part in encoder_parts))
    except ColorFluxError as error:
        raise ColorFluxError(f"--{flag} {base}: {error}") from error
    store = Store(config.cache / f"{name}-{encoder[:16]}-{config.precision}")
    fill(store, pictures, make_encode, config.workers)
    return Cached(store, [picture.key for picture in pictures], dtype)


def fingerprint(*paths: Path) -> str:
    """Digest of model files, or of the files in model folders."""
    files = [sorted(path.glob("*.[js]*")) if path.is_dir() else [path] for path in paths]
    return digest(*(file.read_bytes() for file in chain(*files)))
