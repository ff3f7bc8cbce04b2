"""S3Diff's weights as one safetensors file: what it adds to SD-Turbo, DE-Net among it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from ..components import explained, require_fit
from ..errors import ColorFluxError
from .model import ALPHA, S3Diff
from .sd_turbo import NEGATIVE, POSITIVE, load_networks, text_embeddings

FORMAT, FORMAT_VERSION = "colorflux-s3diff", "1"


def load_s3diff(
    checkpoint: Path,
    sd_turbo: Path,
    prompts: Sequence[str] = (POSITIVE, NEGATIVE),
    dtype: torch.dtype = torch.float32,
) -> S3Diff:
    """S3Diff on the CPU, with SD-Turbo in ``dtype`` and what modulates it in float32.

    Args:
        checkpoint: A file that ``python -m colorflux_core.s3diff.convert`` wrote.
        sd_turbo: SD-Turbo's diffusers folder or ``sd_turbo.safetensors``.
        prompts: The positive and the negative one.
        dtype: Of SD-Turbo and the LoRA.

    Raises:
        ColorFluxError: when a file is missing, damaged or for another model, naming it.
    """
    metadata = _read_metadata(checkpoint)
    unet, vae = load_networks(sd_turbo)
    embeddings = text_embeddings(sd_turbo, prompts)
    model = S3Diff(unet, vae, embeddings, int(metadata["rank_unet"]), int(metadata["rank_vae"]))
    with explained("S3Diff checkpoint", checkpoint):
        state = load_file(checkpoint)
    fill(model, state, checkpoint)
    model.unet.to(dtype)
    model.vae.to(dtype)
    return model.eval().requires_grad_(False)


def fill(model: S3Diff, state: Mapping[str, Tensor], path: Path) -> None:
    """Load the trained part of the model. Raises ColorFluxError unless it is exactly that part."""
    expected = model.trained
    require_fit(
        path,
        expected.keys() - state.keys(),
        state.keys() - expected.keys(),
        [
            (key, state[key].shape, tensor.shape)
            for key, tensor in expected.items()
            if key in state and state[key].shape != tensor.shape
        ],
    )
    for key, tensor in state.items():
        if not tensor.isfinite().all():
            raise ColorFluxError(f"{path} holds NaN or infinite values in {key}: get it again.")
    model.load_state_dict(state, strict=False, assign=True)


def save_s3diff(path: Path, state: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write a checkpoint, whole or not at all. Raises ColorFluxError when it cannot be written."""
    header = {"format": FORMAT, "format_version": FORMAT_VERSION, "alpha": str(ALPHA), **metadata}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=path.parent, prefix=".") as folder:
            complete = Path(folder) / path.name
            save_file({k: t.contiguous() for k, t in state.items()}, complete, metadata=header)
            complete.chmod(0o644)
            complete.replace(path)
    except (OSError, SafetensorError) as error:
        raise ColorFluxError(f"{path} cannot be written: {error}") from error


def _read_metadata(path: Path) -> dict[str, str]:
    if not path.is_file():
        raise ColorFluxError(f"The S3Diff checkpoint is missing: there is no {path}.")
    with explained("S3Diff checkpoint", path), safe_open(path, framework="pt") as file:
        metadata = file.metadata() or {}
    if metadata.get("format") != FORMAT:
        raise ColorFluxError(
            f"{path} is no converted S3Diff: make it from the published s3diff.pkl with "
            "python -m colorflux_core.s3diff.convert."
        )
    if metadata["format_version"] != FORMAT_VERSION:
        raise ColorFluxError(
            f"{path} has format_version {metadata['format_version']}, and this ColorFLUX reads "
            f"{FORMAT_VERSION}: convert it again."
        )
    return metadata
