"""The command line of S3Diff: photos and folders of photos in, the same without noise and blur."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from .cli.command_line import (
    add_device,
    device_and_dtype,
    exit_status,
    photo_parser,
    quiet_libraries,
    work_through,
)
from .s3diff.options import MULTIPLE, SMALLEST_TILE, ColorFix, Restoration

if TYPE_CHECKING:
    from torch import Tensor

    from .cli.batch import Report, Task
    from .photos.photo import Photo

PROG = "restore"
ON_GPU = "float16"

EXAMPLES = """\
files, which their authors publish:
  s3diff.pkl            huggingface.co/zhangap/S3Diff
  de_net.pth            github.com/ArcticHare105/S3Diff, in assets/mm-realsr
  sd_turbo.safetensors  huggingface.co/stabilityai/sd-turbo

examples:
  once, the first two as one safetensors file:
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
    """The arguments."""
    p = photo_parser(
        PROG,
        "Remove noise and blur from old photos with S3Diff, in one step of SD-Turbo.\n"
        "Photos that are restored already are skipped, so an interrupted run can be repeated.",
        EXAMPLES,
    )
    how = p.add_argument_group("how to restore")
    how.add_argument(
        "--scale",
        type=float,
        default=Restoration.scale,
        metavar="X",
        help="size of the result over the photo's, 1 to 4 (%(default)g); S3Diff was trained at 4",
    )
    how.add_argument(
        "--tile",
        type=int,
        default=Restoration.tile,
        metavar="N",
        help=f"side of a tile in pixels of the result, a multiple of {MULTIPLE} from "
        f"{SMALLEST_TILE} (%(default)s); smaller ones take less memory and more time",
    )
    how.add_argument(
        "--color-fix",
        choices=get_args(ColorFix),
        default=Restoration.color_fix,
        help="how the photo's own colors are taken over: wavelet (the default) all that is "
        "coarser than 32 pixels, adain each channel's mean and spread",
    )
    how.add_argument(
        "--gray",
        action=argparse.BooleanOptionalAction,
        help="make the result gray, since SD-Turbo can tint; default: if the photo looks gray",
    )
    how.add_argument(
        "--seed",
        type=int,
        default=Restoration.seed,
        metavar="N",
        help="of the noise in the latents (%(default)s)",
    )
    how.add_argument("--mode", action="store_true", help="no such noise, and a softer picture")
    how.add_argument(
        "--guidance",
        type=float,
        default=Restoration.guidance,
        metavar="X",
        help="of the positive prompt over the negative (%(default)s)",
    )
    how.add_argument(
        "--positive",
        metavar="TEXT",
        help="in place of the published prompt; takes the tokenizer in SD-Turbo's folder",
    )
    how.add_argument("--negative", metavar="TEXT", help="likewise")
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
    return Restoration(
        scale=args.scale,
        tile=args.tile,
        guidance=args.guidance,
        color_fix=args.color_fix,
        gray=bool(args.gray),
        seed=None if args.mode else args.seed,
    )


def _restore(args: argparse.Namespace) -> int:
    how = options(args)

    def load(_: float) -> Task:
        quiet_libraries()
        from .cli.batch import Task, tone_of
        from .s3diff.checkpoint import load_s3diff
        from .s3diff.restorer import restore
        from .s3diff.sd_turbo import NEGATIVE, POSITIVE

        device, dtype = device_and_dtype(args, ON_GPU)
        prompts = (
            POSITIVE if args.positive is None else args.positive,
            NEGATIVE if args.negative is None else args.negative,
        )
        model = load_s3diff(args.s3diff, args.sd_turbo, prompts, dtype).to(device)

        def restored(photo: Photo, report: Report) -> Tensor:
            gray = tone_of(photo) == "gray" if args.gray is None else args.gray
            on_tile = partial(report, "tile")
            return restore(model, photo.pixels[None], replace(how, gray=gray), on_tile)[0]

        return Task(restored, "restored", "--tile")

    return work_through(PROG, args, load)


if __name__ == "__main__":
    import signal

    signal.signal(signal.SIGTERM, signal.default_int_handler)
    sys.exit(main())
