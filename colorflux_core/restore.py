"""The command line of S3Diff: photos and folders of photos in, the same without noise and blur."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from .cli.command_line import (
    add_device,
    device_and_dtype,
    exit_status,
    photo_parser,
    quiet_libraries,
    run_program,
    work_through,
)
from .cli.flags import Parser, add_setting, given, named_path
from .s3diff.options import Restoration

if TYPE_CHECKING:
    from torch import Tensor

    from .cli.batch import Report, Task
    from .photos.photo import Photo

PROG = "restore"
GPU_DTYPE = "float16"

EXAMPLES = """\
files to download from their authors:
  s3diff.pkl            huggingface.co/zhangap/S3Diff
  de_net.pth            github.com/ArcticHare105/S3Diff, in assets/mm-realsr
  sd_turbo.safetensors  huggingface.co/stabilityai/sd-turbo

examples:
  convert the first two, once, into one safetensors file:
    python -m colorflux_core.s3diff.convert s3diff.pkl de_net.pth -o s3diff.safetensors
  a folder and its subfolders; run it again to continue where it stopped:
    python -m colorflux_core.restore scans -o restored \\
      --s3diff s3diff.safetensors --sd-turbo sd_turbo.safetensors
  four times as large, with less memory:
    python -m colorflux_core.restore stamp.png -o stamp-large.png --scale 4 --tile 512 \\
      --s3diff s3diff.safetensors --sd-turbo sd_turbo.safetensors
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status. Raises SystemExit for ``--help``."""
    return exit_status(PROG, lambda: _restore(parser().parse_args(argv)))


def parser() -> Parser:
    """The arguments. An option that is not given is None."""
    p = photo_parser(
        PROG,
        "Remove noise and blur from old photos with S3Diff, in one step of SD-Turbo.\n"
        "Photos that already have a result are skipped, so an interrupted run can be repeated.",
        EXAMPLES,
    )
    how = p.add_argument_group("restoration")
    for name in ("scale", "tile", "color_fix"):
        add_setting(how, Restoration, name)
    add_setting(how, Restoration, "gray", unset="on if the photo looks gray")
    add_setting(how, Restoration, "seed")
    how.add_argument(
        "--mode",
        action="store_true",
        help="encode the scan without random noise (the mode of the latent distribution), for a "
        "softer picture",
    )
    add_setting(how, Restoration, "guidance")
    how.add_argument(
        "--positive",
        metavar="TEXT",
        help="replaces the published positive prompt; needs the tokenizer in SD-Turbo's folder",
    )
    how.add_argument(
        "--negative", metavar="TEXT", help="replaces the published negative prompt, likewise"
    )
    model = p.add_argument_group("model")
    model.add_argument(
        "--s3diff", type=named_path, required=True, metavar="FILE", help="the converted checkpoint"
    )
    model.add_argument(
        "--sd-turbo",
        type=named_path,
        required=True,
        metavar="PATH",
        help="SD-Turbo's diffusers folder, or sd_turbo.safetensors",
    )
    add_device(model, GPU_DTYPE)
    return p


def options(args: argparse.Namespace) -> Restoration:
    """The flags as options."""
    how = Restoration(**given(args, Restoration))
    return replace(how, seed=None) if args.mode else how


def _restore(args: argparse.Namespace) -> int:
    how = options(args)

    def load(_: float) -> Task:
        quiet_libraries()
        from .cli.batch import Task, tone_of
        from .photos.provenance import provenance
        from .s3diff.checkpoint import load_s3diff
        from .s3diff.restorer import restore
        from .s3diff.sd_turbo import NEGATIVE, POSITIVE

        device, dtype = device_and_dtype(args, GPU_DTYPE)
        prompts = (
            POSITIVE if args.positive is None else args.positive,
            NEGATIVE if args.negative is None else args.negative,
        )
        model = load_s3diff(args.s3diff, args.sd_turbo, prompts, dtype).to(device)

        def restore_photo(photo: Photo, report: Report) -> Tensor:
            gray = tone_of(photo) == "gray" if args.gray is None else args.gray
            on_tile = partial(report, "tile")
            return restore(model, photo.pixels[None], replace(how, gray=gray), on_tile)[0]

        made = None
        if not args.no_provenance:
            files = {"s3diff": args.s3diff, "sd_turbo": args.sd_turbo}
            made = provenance("restored", files, how)
        return Task(restore_photo, "restored", "--tile", provenance=made)

    return work_through(PROG, args, load)


if __name__ == "__main__":
    run_program(main)
