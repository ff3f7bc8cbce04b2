"""``python -m colorflux_core.s3diff.convert``: the published weights as one safetensors file."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor

from ..errors import ColorFluxError
from .checkpoint import fill, save_s3diff
from .model import S3Diff
from .sd_turbo import UNET, VAE

SOURCE = "zhangap/S3Diff and DE-Net of ArcticHare105/S3Diff"
LICENCE = "Apache-2.0"

MODULATORS = {
    f"state_dict_{network}_{part}": f"{network}_modulator.{part}."
    for network in ("vae", "unet")
    for part in ("de_mlp", "block_mlp", "fuse_mlp")
}
EMBEDDINGS = {
    "state_dict_vae_block": "vae_modulator.block_embeddings.",
    "state_dict_unet_block": "unet_modulator.block_embeddings.",
}


def convert(
    s3diff: Path,
    de_net: Path,
    output: Path,
    unet: Mapping[str, Any] = UNET,
    vae: Mapping[str, Any] = VAE,
) -> int:
    """Read the two published pickles without running anything in them, check them, write one file.

    Args:
        s3diff: ``s3diff.pkl``.
        de_net: ``de_net.pth``.
        output: The safetensors file.
        unet: The config of the UNet that the weights are for: SD-Turbo's.
        vae: The config of its VAE.

    Returns:
        How many tensors there are.

    Raises:
        ColorFluxError: when a file cannot be read, holds more than weights, or when a key is
            missing, unknown or of another shape than it has in SD-Turbo.
    """
    published, estimator = _read(s3diff), _read(de_net)
    try:
        ranks = int(published["rank_unet"]), int(published["rank_vae"])
        state = {
            **_named("unet.", published["state_dict_unet"], ".default."),
            **_named("vae.", published["state_dict_vae"], ".vae_skip."),
            **_named("de_net.", estimator),
            "frequencies": published["w"].detach(),
        }
        for key, prefix in MODULATORS.items():
            state |= _named(prefix, published[key])
        for key, prefix in EMBEDDINGS.items():
            state |= _named(prefix, published["state_embeddings"][key])
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ColorFluxError(f"{s3diff} is not S3Diff's checkpoint: it lacks {error}.") from error
    with torch.device("meta"):
        model = S3Diff(UNet2DConditionModel(**unet), AutoencoderKL(**vae), torch.empty(0), *ranks)
    fill(model, state, s3diff)
    metadata = {"rank_unet": str(ranks[0]), "rank_vae": str(ranks[1])}
    save_s3diff(output, state, {**metadata, "source": SOURCE, "licence": LICENCE})
    return len(state)


def _read(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise ColorFluxError(f"{path} does not exist: check the name.") from error
    except (UnpicklingError, EOFError, OSError, RuntimeError, ValueError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise ColorFluxError(f"{path} holds no plain weights, or is damaged: {reason}") from error


def _named(prefix: str, state: Mapping[str, Tensor], adapter: str = "") -> dict[str, Tensor]:
    """The state under our names; peft has the adapter's name in the middle of each key."""
    return {
        prefix + (key.replace(adapter, ".") if adapter else key): tensor.detach()
        for key, tensor in state.items()
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m colorflux_core.s3diff.convert",
        description="Converts the published S3Diff weights, once, into one safetensors file. "
        "Nothing in the pickles is executed; every key and shape is checked.",
    )
    parser.add_argument("s3diff", type=Path, help="s3diff.pkl")
    parser.add_argument("de_net", type=Path, help="de_net.pth, from the same authors")
    parser.add_argument(
        "-o", "--output", type=Path, default=Path("s3diff.safetensors"), help="(%(default)s)"
    )
    given = parser.parse_args(arguments)
    try:
        count = convert(given.s3diff, given.de_net, given.output)
    except ColorFluxError as error:
        print(error, file=sys.stderr)
        return 1
    print(f"{given.output}: {count} tensors, {LICENCE}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
