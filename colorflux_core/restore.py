"""The command line of S3Diff: photos and folders of photos in, the same without noise and blur."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from .command_line import (
    Parser,
    add_device,
    add_photos_and_files,
    device_and_dtype,
    exit_status,
    quiet_libraries,
    work_through,
)

if TYPE_CHECKING:
    from torch import Tensor

    from .batch import StepReport, Work
    from .photo import Photo
    from .s3diff.options import Restoration

PROG = "restore"
ON_GPU = "float16"

EXAMPLES = """\
examples:
  once, the published weights as one safetensors file:
    python -m colorflux_core.s3diff.convert s3diff.pkl de_net.pth -o s3diff.safetensors
  a folder and its subfolders; run it again to go on where it stopped:
    python -m colorflux_core.restore scans -o restored \\
      --s3diff s3diff.safetensors --sd-turbo sd_turbo.safetensors
  four times as large, with half the memory:
    python -m colorflux_core.restore stamp.png -o stamp-large.png --scale 4 --tile 512 \\
      --s3diff s3diff.safetensors --sd-turbo sd_turbo.safetensors
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status.

    Raises SystemExit where argparse does: for --help and for arguments that cannot be parsed.
    """
    args = parser().parse_args(argv)
    return exit_status(PROG, lambda: _restore(args))


def parser() -> argparse.ArgumentParser:
    """The arguments; None means the default of ``Restoration``."""
    p = Parser(
        PROG,
        "Remove noise and blur from old photos with S3Diff, in one step of SD-Turbo.\n"
        "Photos that are restored already are skipped, so an interrupted run can be repeated.",
        EXAMPLES,
    )
    add_photos_and_files(p)
    how = p.add_argument_group("how to restore")
    how.add_argument(
        "--scale",
        type=float,
        metavar="X",
        help="size of the result over the photo's, 1 (the default) to 4",
    )
    how.add_argument(
        "--tile",
        type=int,
        metavar="N",
        help="side of a tile in pixels (768), a multiple of 64; a smaller one takes less memory",
    )
    how.add_argument(
        "--color-fix",
        choices=("wavelet", "adain", "none"),
        help="how the photo's own colors are taken over: wavelet (the default) all that is "
        "coarser than 32 pixels, adain each channel's mean and spread",
    )
    how.add_argument(
        "--gray",
        action=argparse.BooleanOptionalAction,
        help="make the result gray, since SD-Turbo can tint; default: if the photo is",
    )
    how.add_argument("--seed", type=int, metavar="N", help="of the noise in the latents (0)")
    how.add_argument(
        "--mode", action="store_true", help="no noise in the latents: softer, without a seed"
    )
    how.add_argument("--positive", metavar="TEXT", help="in place of the published prompt")
    how.add_argument("--negative", metavar="TEXT", help="in place of the published prompt")
    model = p.add_argument_group("model")
    model.add_argument(
        "--s3diff", type=Path, required=True, metavar="FILE", help="the converted checkpoint"
    )
    model.add_argument(
        "--sd-turbo",
        type=Path,
        required=True,
        metavar="PATH",
        help="SD-Turbo's diffusers folder, or sd_turbo.safetensors",
    )
    add_device(model, ON_GPU)
    return p


def options(args: argparse.Namespace) -> Restoration:
    """The flags as options. Raises ColorFluxError for a value that cannot be used."""
    from .s3diff.options import Restoration

    given = {
        name: getattr(args, name)
        for name in ("scale", "tile", "color_fix", "gray", "seed")
        if getattr(args, name) is not None
    }
    return Restoration(**given | ({"seed": None} if args.mode else {}))


def _restore(args: argparse.Namespace) -> int:
    how = options(args)

    def load(_: float) -> Work:
        from dataclasses import replace

        from .s3diff.checkpoint import load_s3diff
        from .s3diff.restorer import restore
        from .s3diff.sd_turbo import NEGATIVE, POSITIVE

        quiet_libraries()
        device, dtype = device_and_dtype(args, ON_GPU)
        prompts = (args.positive or POSITIVE, args.negative or NEGATIVE)
        model = load_s3diff(args.s3diff, args.sd_turbo, prompts, dtype).to(device)

        def restored(photo: Photo, on_tile: StepReport) -> Tensor:
            gray = photo.is_gray if args.gray is None else args.gray
            return restore(model, photo.pixels[None], replace(how, gray=gray), on_tile)[0]

        return restored

    return work_through(PROG, "restored", args, load)


if __name__ == "__main__":
    import signal

    signal.signal(signal.SIGTERM, signal.default_int_handler)
    sys.exit(main())
