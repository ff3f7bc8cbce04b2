"""The command line: photos and folders of photos in, the same in color out."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from .cli.command_line import (
    add_device,
    device_and_dtype,
    exit_status,
    photo_parser,
    quiet_libraries,
    work_through,
)
from .restore import ON_GPU as RESTORE_ON_GPU
from .s3diff.options import Restoration

if TYPE_CHECKING:
    from torch import Tensor

    from .bundles.bundle import Bundle
    from .cli.batch import Report, Task, Work
    from .model.settings import Settings
    from .photos.photo import Photo

PROG = "colorize"
PARTS = ("transformer", "vae", "image_encoder", "redux", "controlnet")
ON_GPU = "bfloat16"

EXAMPLES = """\
examples:
  one photo, to a file:
    python -m colorflux_core.colorize grandma.jpg -o grandma-color.jpg
  a folder and its subfolders; run it again to go on where it stopped:
    python -m colorflux_core.colorize scans -o colorized
  see first what would be done:
    python -m colorflux_core.colorize scans -o colorized --dry-run
  with the colors of another picture:
    python -m colorflux_core.colorize beach.tif -o out --reference postcard.jpg
  with noise and blur taken out first; colorflux_core.restore --help tells of the two files:
    python -m colorflux_core.colorize scans -o colorized \\
      --restore s3diff.safetensors --sd-turbo sd_turbo.safetensors
  with FLUX.1-dev, on a GPU:
    python -m colorflux_core.colorize scans -o colorized \\
      --transformer FLUX.1-dev --vae FLUX.1-dev --image-encoder FLUX.1-Redux-dev \\
      --redux FLUX.1-Redux-dev --controlnet gray-controlnet --lora pro_dpo.safetensors
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status.

    Raises SystemExit where argparse does: for --help and for arguments that cannot be parsed.
    """
    args = _parse(argv)
    return exit_status(PROG, lambda: _colorize(args))


def parser() -> argparse.ArgumentParser:
    """The arguments; every default that concerns the model is None, which means the bundle's."""
    p = photo_parser(
        PROG,
        "Colorize old photos. Each comes back at its own size and under its own name.\n"
        "Photos that are colorized already are skipped, so an interrupted run can be repeated.",
        EXAMPLES,
    )
    how = p.add_argument_group("how to colorize", "Defaults are the bundle's.")
    how.add_argument(
        "--reference",
        type=Path,
        metavar="PHOTO",
        help="take the visual prompt from this color picture, in place of the photo itself",
    )
    how.add_argument("--seed", type=int, metavar="N", help="another seed, other colors")
    how.add_argument(
        "--detail",
        type=float,
        metavar="X",
        help="share of the photo's own fine detail that is put back: 0 none, 1 all",
    )
    how.add_argument("--steps", type=int, metavar="N", help="Euler steps; more take longer")
    how.add_argument(
        "--guidance", type=float, metavar="X", help="guidance of guidance-distilled models"
    )
    how.add_argument(
        "--canvas",
        metavar="square|aspect|WxH",
        help="size at which the model works: a square as in the paper, the photo's proportions, or "
        "a width and height (multiples of 16)",
    )
    how.add_argument(
        "--canvas-pixels",
        type=int,
        metavar="N",
        help="side of the square, or of the square of as many pixels",
    )
    how.add_argument(
        "--control-scale", type=float, metavar="X", help="strength of the gray ControlNet"
    )
    how.add_argument(
        "--control-start", type=float, metavar="X", help="share of the steps before it sets in"
    )
    how.add_argument(
        "--control-end", type=float, metavar="X", help="share of the steps after which it stops"
    )
    how.add_argument(
        "--control-mode", type=int, metavar="N", help="for union ControlNets: the index of gray"
    )
    how.add_argument(
        "--lora-scale",
        type=float,
        metavar="X",
        help="strength of the Pro-DPO LoRA; 0 for none",
    )
    how.add_argument(
        "--text-tokens",
        type=int,
        metavar="N",
        help="zero tokens in the place of a text; what the model was trained with",
    )

    first = p.add_argument_group(
        "how to clean the photo first", "S3Diff takes noise and blur from it, if it is given."
    )
    first.add_argument(
        "--restore",
        type=Path,
        metavar="FILE",
        help="S3Diff's checkpoint, as python -m colorflux_core.s3diff.convert writes it",
    )
    first.add_argument(
        "--sd-turbo",
        type=Path,
        metavar="PATH",
        help="SD-Turbo's diffusers folder, or sd_turbo.safetensors",
    )
    first.add_argument(
        "--restore-tile",
        type=int,
        default=Restoration.tile,
        metavar="N",
        help="side of its tiles in pixels (%(default)s); smaller ones take less memory",
    )

    model = p.add_argument_group(
        "model", "Either a bundle, or its parts: diffusers folders or the files as published."
    )
    model.add_argument("--bundle", metavar="FOLDER", help='"nano" (the default) or a folder')
    model.add_argument("--transformer", type=Path, metavar="PATH", help="FLUX.1-dev's or alike")
    model.add_argument("--vae", type=Path, metavar="PATH", help="FLUX.1's")
    model.add_argument("--image-encoder", type=Path, metavar="PATH", help="SigLIP")
    model.add_argument("--redux", type=Path, metavar="PATH", help="Redux")
    model.add_argument("--controlnet", type=Path, metavar="PATH", help="a gray or union ControlNet")
    model.add_argument("--lora", type=Path, metavar="FILE", help="the Pro-DPO LoRA, if any")
    add_device(model, ON_GPU)
    return p


def with_flags(settings: Settings, args: argparse.Namespace) -> Settings:
    """The settings with the flags that were given in their place.

    Raises ColorFluxError for a value that cannot be used.
    """
    given = {
        field.name: value
        for field in fields(settings)
        if (value := getattr(args, field.name)) is not None
    }
    canvas = {"mode": args.canvas, "pixels": args.canvas_pixels}
    given["canvas"] = replace(
        settings.canvas, **{name: value for name, value in canvas.items() if value is not None}
    )
    return replace(settings, **given)


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    p = parser()
    args = p.parse_args(argv)
    missing = [f"--{part.replace('_', '-')}" for part in PARTS if getattr(args, part) is None]
    has_parts = args.lora is not None or len(missing) < len(PARTS)
    if has_parts and args.bundle is not None:
        p.error("--bundle is a whole model: leave it out, or leave out the flags for its parts")
    if has_parts and missing:
        p.error(f"a model given by its parts needs all of them: add {', '.join(missing)}")
    args.has_parts = has_parts
    if (args.restore is None) != (args.sd_turbo is None):
        p.error("--restore and --sd-turbo go together: S3Diff is an addition to SD-Turbo")
    return args


def _colorize(args: argparse.Namespace) -> int:
    from .model.settings import Settings

    # For their limits, before a model is loaded.
    with_flags(Settings(), args)
    cleaning = Restoration(gray=True, tile=args.restore_tile)

    def load(max_megapixels: float) -> Task:
        quiet_libraries()
        from .cli.batch import Task, tone_of
        from .model.colorization import colorize
        from .photos.photo import load_photo

        reference = None
        if args.reference is not None:
            reference = load_photo(args.reference, max_megapixels=max_megapixels).pixels
        cleaned = _cleaner(args, cleaning)
        bundle = _load(args)
        settings = with_flags(bundle.settings, args)

        def in_color(photo: Photo, report: Report) -> Tensor:
            pixels, on_step = cleaned(photo, report), partial(report, "step")
            return colorize(bundle.pipeline, pixels, settings, reference, on_step)

        def remark(photo: Photo) -> str:
            return ", was in color, now colorized from gray" if tone_of(photo) == "color" else ""

        flags = "--canvas-pixels" if args.restore is None else "--canvas-pixels or --restore-tile"
        return Task(in_color, "colorized", flags, remark)

    return work_through(PROG, args, load)


def _cleaner(args: argparse.Namespace, how: Restoration) -> Work:
    """What a photo goes through first: nothing, or S3Diff, on the device only while it works."""
    if args.restore is None:
        return lambda photo, _: photo.pixels
    from .s3diff.checkpoint import load_s3diff
    from .s3diff.restorer import restore

    device, dtype = device_and_dtype(args, RESTORE_ON_GPU)
    model = load_s3diff(args.restore, args.sd_turbo, dtype=dtype)

    def cleaned(photo: Photo, report: Report) -> Tensor:
        model.to(device)
        try:
            return restore(model, photo.pixels[None], how, partial(report, "tile"))[0]
        finally:
            model.to("cpu")

    return cleaned


def _load(args: argparse.Namespace) -> Bundle:
    from .bundles.bundle import assemble, load_bundle

    device, dtype = device_and_dtype(args, ON_GPU)
    if args.has_parts:
        bundle = assemble(
            transformer=args.transformer,
            vae=args.vae,
            image_encoder=args.image_encoder,
            image_embedder=args.redux,
            controlnet=args.controlnet,
            lora=args.lora,
            device=device,
            dtype=dtype,
        )
    else:
        bundle = load_bundle(args.bundle or "nano", device=device, dtype=dtype)
    bundle.pipeline.set_progress_bar_config(disable=True)
    return bundle


if __name__ == "__main__":
    import signal

    signal.signal(signal.SIGTERM, signal.default_int_handler)
    sys.exit(main())
