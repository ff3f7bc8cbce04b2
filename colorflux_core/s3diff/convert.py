"""``python -m colorflux_core.s3diff.convert``: the published weights as one safetensors file."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor

from ..bundles.weights import explained, require_finite, require_same_layout
from ..cli.command_line import DONE, exit_status, run_program
from ..cli.flags import Parser
from ..errors import ColorFluxError
from .checkpoint import SUFFIX, ranks, save_s3diff
from .model import S3Diff
from .sd_turbo import UNET, VAE

PROG = "s3diff.convert"
SOURCE = "zhangap/S3Diff and DE-Net of ArcticHare105/S3Diff"
LICENCE = "Apache-2.0"

NETWORKS = ("vae", "unet")
PARTS = {
    f"state_dict_{network}_{part}": f"{network}_modulator.{part}."
    for network in NETWORKS
    for part in ("de_mlp", "block_mlp", "fuse_mlp")
} | {
    f"state_dict_{network}_block": f"{network}_modulator.block_embeddings." for network in NETWORKS
}

EXIT_STATUS = """\
exit status:
  0    done
  2    nothing was written: a file cannot be read, is damaged or holds something else
"""


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
            missing, unknown or of another shape than it has in SD-Turbo; nothing is written then.
    """
    if output.suffix != SUFFIX:
        raise ColorFluxError(f"{output} does not end in {SUFFIX}: rename it.")
    with explained("S3Diff checkpoint", s3diff):
        published = _read(s3diff)
        rank_unet, rank_vae = ranks(published)
        state = {
            **_named("unet.", published["state_dict_unet"], ".default."),
            **_named("vae.", published["state_dict_vae"], ".vae_skip."),
            **_named("", {"frequencies": published["w"]}),
        }
        published |= published["state_embeddings"]
        for key, prefix in PARTS.items():
            state |= _named(prefix, published[key])
        metadata = {
            "rank_unet": str(rank_unet),
            "rank_vae": str(rank_vae),
            "targets_unet": json.dumps(published["unet_lora_target_modules"]),
            "targets_vae": json.dumps(published["vae_lora_target_modules"]),
            "source": SOURCE,
            "licence": LICENCE,
        }
    with explained("DE-Net", de_net):
        estimator = _named("de_net.", _read(de_net))
    with torch.device("meta"):
        networks = UNet2DConditionModel(**unet), AutoencoderKL(**vae)
        model = S3Diff(*networks, torch.empty(0), rank_unet, rank_vae)
    require_same_layout(de_net, model.de_net.state_dict(prefix="de_net."), estimator)
    require_finite(de_net, estimator)
    require_same_layout(s3diff, model.trained, state | estimator)
    require_finite(s3diff, state)
    save_s3diff(output, state | estimator, metadata)
    return len(state | estimator)


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise ColorFluxError(f"There is no file {path}: check the name.")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        # There is nothing that a damaged pickle could not raise. What torch says is left out: it
        # advises to execute the pickle.
        raise ColorFluxError(
            f"{path} is damaged or holds more than weights ({type(error).__name__}); nothing in it "
            "was executed. Get it again from its authors."
        ) from error
    if not isinstance(content, dict):
        raise ColorFluxError(f"{path} holds a {type(content).__name__} in place of named weights.")
    return content


def _named(prefix: str, state: Mapping[str, Any], adapter: str = ".") -> dict[str, Tensor]:
    """The state under our names; peft has the adapter's name in the middle of each key."""
    for key, value in state.items():
        if not isinstance(value, Tensor):
            raise TypeError(f"{key} is no tensor")
    return {prefix + key.replace(adapter, "."): value.detach() for key, value in state.items()}


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    p = Parser(
        PROG,
        "S3DIFF.pkl DE_NET.pth [-o S3DIFF.safetensors]",
        "Convert the published S3Diff weights, once, into one safetensors file.\n"
        "Nothing in the pickles is executed; every key and shape is checked.",
        EXIT_STATUS,
    )
    p.add_argument("s3diff", type=Path, metavar="S3DIFF.pkl", help="as its authors published it")
    p.add_argument(
        "de_net", type=Path, metavar="DE_NET.pth", help="from assets/mm-realsr of their code"
    )
    p.add_argument(
        "-o",
        "--output",
        type=Path,
        default=Path("s3diff.safetensors"),
        metavar="S3DIFF.safetensors",
        help="the file to write (default: %(default)s)",
    )
    return p.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status. Raises SystemExit for ``--help``."""

    def command() -> int:
        args = parse(argv)
        count = convert(args.s3diff, args.de_net, args.output)
        print(f"{args.output}: {count} tensors, {LICENCE}")
        return DONE

    return exit_status(PROG, command)


if __name__ == "__main__":
    run_program(main)
