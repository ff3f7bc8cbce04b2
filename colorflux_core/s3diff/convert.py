"""``python -m colorflux_core.s3diff.convert``: convert the published weights to safetensors."""

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
    """Read the two published pickles without executing code, validate them and write one file.

    Args:
        s3diff: The published ``s3diff.pkl``.
        de_net: The published ``de_net.pth``.
        output: The safetensors file to write.
        unet: Config of the UNet the weights are for; by default SD-Turbo's.
        vae: Config of its VAE.

    Returns:
        The number of tensors.

    Raises:
        ColorFluxError: if a file cannot be read or contains more than weights, or if a key is
            missing, unexpected or has the wrong shape. Nothing is written in this case.
    """
    if output.suffix != SUFFIX:
        raise ColorFluxError(f"The output {output} must end in {SUFFIX}: rename it.")
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
        raise ColorFluxError(f"The file {path} does not exist: check the name.")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        # A damaged pickle can raise anything. torch's own message is omitted, because it suggests
        # executing the pickle.
        raise ColorFluxError(
            f"{path} is damaged or contains more than weights ({type(error).__name__}). No code in "
            "it was executed. Download it again from its authors."
        ) from error
    if not isinstance(content, dict):
        raise ColorFluxError(
            f"{path} contains a {type(content).__name__} instead of named weights."
        )
    return content


def _named(prefix: str, state: Mapping[str, Any], adapter: str = ".") -> dict[str, Tensor]:
    """Rename keys to ours, without the adapter name that peft puts in the middle of each key."""
    for key, value in state.items():
        if not isinstance(value, Tensor):
            raise TypeError(f"{key} is not a tensor")
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
