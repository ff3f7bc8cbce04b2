"""Columns that are made in the step: a new random part of each photo every time it is shown.

The part, and how its gray photo has aged, follow from seed and place; so resuming changes nothing.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from diffusers import AutoencoderKL
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from colorflux_core.color import unit_range
from colorflux_core.latents import encode, pack
from colorflux_core.visual_prompt import image_tokens, preprocess

from .data import Batch, Column, Picture, gray, gray_pictures, open_rgb, random_view, to_uint8
from .encoding import kept_type, latents, tokens
from .old_photo import BORDER_SHARE, aged, bordered
from .order import Place
from .parts import Parts, PartsConfig, feature_extractor

Encoding = tuple[Literal["latents", "tokens", "tower_pixels"], Literal["color", "gray"]]
"""What a column holds, and whether of the picture or of its gray photo."""

FRESH = "fresh_pixels"
AFFINE_ERROR = 0.02


def encoded_columns(
    parts: Parts, pictures: list[Picture], encodings: Mapping[str, Encoding]
) -> dict[str, Column]:
    """The columns, encoded once; or, for ``--fresh_views``, what to make them of in the step."""
    if parts.config.fresh_views:
        return {FRESH: FreshPixels(pictures, parts.config)}
    of = {"color": pictures, "gray": gray_pictures(pictures)}
    kinds: dict[str, Callable[[Parts, list[Picture]], Column]] = {
        "latents": latents,
        "tokens": tokens,
        "tower_pixels": tower_pixels,
    }
    return {name: kinds[kind](parts, of[which]) for name, (kind, which) in encodings.items()}


@dataclass(frozen=True)
class TowerPixels:
    """A column: what the vision tower is given of each picture, (3, S, S)."""

    config: PartsConfig
    pictures: list[Picture]

    def __call__(self, place: Place) -> Tensor:
        rgb = unit_range(self.pictures[place.row].pixels())
        return preprocess(feature_extractor(self.config), rgb[None])[0]


def tower_pixels(parts: Parts, pictures: list[Picture]) -> TowerPixels:
    return TowerPixels(parts.config, pictures)


@dataclass(frozen=True)
class FreshPixels:
    """A column: a new part of each photo and its gray photo, uint8 (2, 3, S, S)."""

    pictures: list[Picture]
    config: PartsConfig

    def __call__(self, place: Place) -> Tensor:
        rng = random.Random(f"{self.config.seed}/{place.place}")
        file = self.pictures[place.row].photo.file
        view = random_view(open_rgb(file), self.config.canvas, rng)
        if rng.random() >= self.config.old_photos:
            color = to_uint8(view)
            return torch.stack([color, gray(color)])
        if rng.random() < BORDER_SHARE:
            view = bordered(view, rng)
        color = to_uint8(view)
        old = aged(Image.fromarray(gray(color)[0].numpy()), rng)
        return torch.stack([color, to_uint8(old.convert("RGB"))])


class FreshEncoder:
    """Makes the columns of a batch from its fresh pixels."""

    def __init__(self, parts: Parts, encodings: Mapping[str, Encoding]) -> None:
        self.parts, self.encodings = parts, encodings
        self.processor = feature_extractor(parts.config)
        kinds = {kind for kind, _ in encodings.values()}
        if "latents" in kinds:
            vae = parts.load("vae", dtype=torch.float32).to(parts.device)
            vae.enable_slicing()
            self.vae, self.convolution = vae, as_convolution(vae)
        if "tokens" in kinds:
            self.tower = parts.load("image_encoder", dtype=torch.float32).to(parts.device)

    @torch.no_grad()
    def __call__(self, batch: Batch) -> Batch:
        color, gray = unit_range(batch[FRESH]).unbind(1)
        of = {"color": color, "gray": gray}
        columns = {
            name: self.encode(kind, of[which]) for name, (kind, which) in self.encodings.items()
        }
        return {name: column for name, column in batch.items() if name != FRESH} | columns

    def encode(self, kind: str, rgb: Tensor) -> Tensor:
        if kind == "tower_pixels":
            return preprocess(self.processor, rgb).to(rgb.device)
        dtype = self.parts.config.autocast
        with torch.autocast(rgb.device.type, dtype, enabled=dtype is not None):
            if kind == "tokens":
                kept = kept_type(self.parts.config, torch.bfloat16)
                return image_tokens(self.tower, self.processor, rgb).to(kept)
            if self.convolution is None:
                return pack(encode(self.vae, rgb)).float()
        weight, bias = self.convolution
        return pack(F.conv2d(rgb * 2 - 1, weight, bias, stride=weight.shape[-1]))


def as_convolution(vae: AutoencoderKL) -> tuple[Tensor, Tensor] | None:
    """Weight and bias of the one convolution that the encoder is, as nano's; None if it is none.

    Nano's encoder computes an affine map of each patch, through all of AutoencoderKL's layers.
    """
    side = 2 ** (len(vae.config.block_out_channels) - 1)
    device = next(vae.parameters()).device

    def encoded(patches: Tensor) -> Tensor:
        return encode(vae, patches / 2 + 0.5)

    with torch.no_grad():
        bias = encoded(torch.zeros(1, 3, side, side, device=device))
        basis = torch.eye(3 * side**2, device=device).view(-1, 3, side, side)
        weight = (encoded(basis) - bias).flatten(1).T.reshape(-1, 3, side, side)
        bias = bias.flatten()
        test = torch.rand(1, 3, 4 * side, 4 * side, generator=torch.Generator().manual_seed(0))
        test = test.to(device) * 2 - 1
        error = (F.conv2d(test, weight, bias, stride=side) - encoded(test)).abs().max()
    return (weight, bias) if error < AFFINE_ERROR else None
