"""The S3Diff checkpoint: a safetensors file with all weights it adds to SD-Turbo, and DE-Net."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..bundles.weights import explained, require_finite, require_same_layout
from ..errors import ColorFluxError
from ..files import atomic_write
from .model import ALPHA, S3Diff
from .sd_turbo import NEGATIVE, POSITIVE, load_networks, text_embeddings

FORMAT, FORMAT_VERSION = "colorflux-s3diff", "1"
SUFFIX = ".safetensors"

LARGEST_RANK = 1024
"""Larger LoRA ranks are rejected as invalid."""


def load_s3diff(
    checkpoint: Path,
    sd_turbo: Path,
    prompts: Sequence[str] = (POSITIVE, NEGATIVE),
    dtype: torch.dtype = torch.float32,
) -> S3Diff:
    """Load S3Diff on the CPU. DE-Net and the modulators stay in float32.

    Args:
        checkpoint: A file written by ``python -m colorflux_core.s3diff.convert``.
        sd_turbo: SD-Turbo's diffusers folder or ``sd_turbo.safetensors``.
        prompts: The positive and the negative prompt.
        dtype: The dtype of SD-Turbo and the LoRA.

    Raises:
        ColorFluxError: if a file is missing, damaged or for another model.
    """
    (rank_unet, rank_vae), state = _read(checkpoint)
    embeddings = text_embeddings(sd_turbo, prompts)
    unet, vae = load_networks(sd_turbo, dtype)
    with torch.device("meta"):
        model = S3Diff(unet, vae, embeddings, rank_unet, rank_vae)
    require_same_layout(f"{checkpoint} with {sd_turbo} as SD-Turbo", model.trained, state)
    require_finite(checkpoint, state)
    typed = {
        key: tensor.to(dtype if key.startswith(("unet.", "vae.")) else torch.float32)
        for key, tensor in state.items()
    }
    model.load_state_dict(typed, strict=False, assign=True)
    return model.eval().requires_grad_(False)


def ranks(recorded: Mapping[str, Any]) -> tuple[int, int]:
    """Read the LoRA ranks of UNet and VAE from the metadata of a checkpoint or published file.

    Raises KeyError, TypeError or ValueError if they are missing or invalid.
    """
    found = int(recorded["rank_unet"]), int(recorded["rank_vae"])
    if not all(0 < rank <= LARGEST_RANK for rank in found):
        raise ValueError(f"its ranks are {found}")
    return found


def save_s3diff(path: Path, state: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write a checkpoint atomically. Raises ColorFluxError when it cannot be written."""
    # safetensors does not write tensors that share memory.
    copies = {
        key: tensor.clone(memory_format=torch.contiguous_format) for key, tensor in state.items()
    }
    header = {"format": FORMAT, "format_version": FORMAT_VERSION, "alpha": str(ALPHA), **metadata}
    with atomic_write(path, make_folder=True) as unfinished:
        save_file(copies, unfinished, metadata=header)


def _read(path: Path) -> tuple[tuple[int, int], dict[str, Tensor]]:
    """Read a checkpoint's LoRA ranks and weights."""
    if not path.is_file():
        raise ColorFluxError(f"The S3Diff checkpoint {path} does not exist.")
    not_converted = ColorFluxError(
        f"{path} is not a converted S3Diff checkpoint: convert the published s3diff.pkl with "
        "python -m colorflux_core.s3diff.convert."
    )
    if path.suffix != SUFFIX:
        raise not_converted
    with explained("S3Diff checkpoint", path), safe_open(path, framework="pt") as file:
        metadata = file.metadata() or {}
        if metadata.get("format") != FORMAT:
            raise not_converted
        if metadata.get("format_version") != FORMAT_VERSION:
            raise ColorFluxError(
                f"{path} has format_version {metadata.get('format_version')}, but this version of "
                f"ColorFLUX reads {FORMAT_VERSION}: convert it again."
            )
        return ranks(metadata), {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
