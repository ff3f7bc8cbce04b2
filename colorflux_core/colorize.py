"""The command line: photos and folders of photos in, the same in color out."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
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
from .cli.flags import Parser, add_setting, flag_of, given, named_path
from .model.settings import Settings
from .photos.canvas import Canvas
from .restore import GPU_DTYPE as RESTORE_GPU_DTYPE
from .s3diff.options import Restoration

if TYPE_CHECKING:
    from torch import Tensor

    from .bundles.bundle import Bundle
    from .cli.batch import Report, Task, Work
    from .photos.photo import Photo

PROG = "colorize"
PARTS = ("transformer", "vae", "image_encoder", "redux", "controlnet")
GPU_DTYPE = "bfloat16"

BUNDLES_OWN = "the bundle's"

EXAMPLES = """\
examples:
  one photo, to a file:
    python -m colorflux_core.colorize grandma.jpg -o grandma-color.jpg
  a folder and its subfolders; run it again to continue where it stopped:
    python -m colorflux_core.colorize scans -o colorized
  list what would be done:
    python -m colorflux_core.colorize scans -o colorized --dry-run
  with the colors of another picture:
    python -m colorflux_core.colorize beach.tif -o out --reference postcard.jpg
  remove noise and blur first (see colorflux_core.restore --help for the two files):
    python -m colorflux_core.colorize scans -o colorized \\
      --restore s3diff.safetensors --sd-turbo sd_turbo.safetensors
  with FLUX.1-dev, on a GPU:
    python -m colorflux_core.colorize scans -o colorized \\
      --transformer FLUX.1-dev --vae FLUX.1-dev --image-encoder FLUX.1-Redux-dev \\
      --redux FLUX.1-Redux-dev --controlnet gray-controlnet --lora pro_dpo.safetensors
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status. Raises SystemExit for ``--help``."""
    return exit_status(PROG, lambda: _colorize(_parse(argv)))


def parser() -> Parser:
    """The arguments. A setting of the model that is not given is None: the bundle's is used."""
    p = photo_parser(
        PROG,
        "Colorize old photos. Each result keeps the photo's size and name.\n"
        "Photos that already have a result are skipped, so an interrupted run can be repeated.",
        EXAMPLES,
    )
    how = p.add_argument_group("colorization")
    how.add_argument(
        "--reference",
        type=named_path,
        metavar="PHOTO",
        help="color picture to take the visual prompt from, instead of the photo itself",
    )
    for name in ("seed", "detail", "steps", "guidance"):
        add_setting(how, Settings, name, unset=BUNDLES_OWN)
    add_setting(how, Canvas, "mode", flag="--canvas", unset=BUNDLES_OWN)
    add_setting(how, Canvas, "pixels", flag="--canvas-pixels", unset=BUNDLES_OWN)
    for name in ("control_scale", "control_start", "control_end", "control_mode"):
        add_setting(how, Settings, name, unset=BUNDLES_OWN)
    add_setting(how, Settings, "lora_scale", unset=BUNDLES_OWN)
    add_setting(how, Settings, "text_tokens", unset=BUNDLES_OWN)

    first = p.add_argument_group("restoration before colorization (S3Diff, optional)")
    first.add_argument(
        "--restore",
        type=named_path,
        metavar="FILE",
        help="S3Diff checkpoint, as written by python -m colorflux_core.s3diff.convert",
    )
    first.add_argument(
        "--sd-turbo",
        type=named_path,
        metavar="PATH",
        help="SD-Turbo's diffusers folder, or sd_turbo.safetensors",
    )
    add_setting(first, Restoration, "tile", flag="--restore-tile")

    model = p.add_argument_group(
        "model", "Either a bundle or all its parts, as diffusers folders or as published files."
    )
    model.add_argument(
        "--bundle", metavar="FOLDER", help="the embedded model or a folder (default: nano)"
    )
    model.add_argument(
        "--transformer", type=named_path, metavar="PATH", help="FLUX.1-dev or similar"
    )
    model.add_argument("--vae", type=named_path, metavar="PATH", help="FLUX.1's VAE")
    model.add_argument("--image-encoder", type=named_path, metavar="PATH", help="SigLIP")
    model.add_argument("--redux", type=named_path, metavar="PATH", help="Redux")
    model.add_argument(
        "--controlnet", type=named_path, metavar="PATH", help="a gray or union ControlNet"
    )
    model.add_argument(
        "--lora", type=named_path, metavar="FILE", help="the Pro-DPO LoRA (optional)"
    )
    add_device(model, GPU_DTYPE)
    return p


def with_flags(settings: Settings, args: argparse.Namespace) -> Settings:
    """The settings, with the flags that were given in their place.

    Raises ColorFluxError for values that do not fit together.
    """
    size = {"mode": args.canvas, "pixels": args.canvas_pixels}
    canvas = replace(
        settings.canvas, **{name: value for name, value in size.items() if value is not None}
    )
    return replace(settings, canvas=canvas, **given(args, Settings))


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    p = parser()
    args = p.parse_args(argv)
    missing = [flag_of(part) for part in PARTS if getattr(args, part) is None]
    has_parts = args.lora is not None or len(missing) < len(PARTS)
    if has_parts and args.bundle is not None:
        p.error("--bundle is a complete model: omit it, or omit the flags for its parts")
    if has_parts and missing:
        p.error(f"a model given by its parts needs all of them: add {', '.join(missing)}")
    args.has_parts = has_parts
    if (args.restore is None) != (args.sd_turbo is None):
        p.error("--restore and --sd-turbo go together: S3Diff is an addition to SD-Turbo")
    return args


def _colorize(args: argparse.Namespace) -> int:
    with_flags(Settings(), args)  # Refuses bad values before a model is loaded.
    cleaning = Restoration(gray=True, tile=args.restore_tile or Restoration.tile)

    def load(max_megapixels: float) -> Task:
        quiet_libraries()
        from .cli.batch import Task, tone_of
        from .model.colorization import colorize
        from .photos.photo import load_photo
        from .photos.provenance import provenance

        reference = None
        if args.reference is not None:
            reference = load_photo(args.reference, max_megapixels=max_megapixels).pixels
        clean = _cleaner(args, cleaning)
        bundle = _load(args)
        settings = with_flags(bundle.settings, args)

        def colorize_photo(photo: Photo, report: Report) -> Tensor:
            pixels, on_step = clean(photo, report), partial(report, "step")
            return colorize(bundle.pipeline, pixels, settings, reference, on_step)

        def remark(photo: Photo) -> str:
            return ", was in color, now colorized from gray" if tone_of(photo) == "color" else ""

        flags = "--canvas-pixels" if args.restore is None else "--canvas-pixels or --restore-tile"
        made = None
        if not args.no_provenance:
            restored = [cleaning] if args.restore else []
            action = "restored and colorized" if restored else "colorized"
            made = provenance(action, _model_files(args), settings, *restored)
        return Task(colorize_photo, "colorized", flags, remark, made)

    return work_through(PROG, args, load)


def _cleaner(args: argparse.Namespace, how: Restoration) -> Work:
    """What a photo goes through first: nothing, or S3Diff, on the device only while it works."""
    if args.restore is None:
        return lambda photo, _: photo.pixels
    from .s3diff.checkpoint import load_s3diff
    from .s3diff.restorer import restore

    device, dtype = device_and_dtype(args, RESTORE_GPU_DTYPE)
    model = load_s3diff(args.restore, args.sd_turbo, dtype=dtype)

    def clean(photo: Photo, report: Report) -> Tensor:
        model.to(device)
        try:
            return restore(model, photo.pixels[None], how, partial(report, "tile"))[0]
        finally:
            model.to("cpu")

    return clean


def _model_files(args: argparse.Namespace) -> dict[str, Path]:
    """What the results name as their model."""
    from .bundles.bundle_config import find_bundle

    names = [*PARTS, "lora", "restore", "sd_turbo"]
    given = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
    return given if args.has_parts else {"bundle": find_bundle(args.bundle or "nano"), **given}


def _load(args: argparse.Namespace) -> Bundle:
    from .bundles.bundle import assemble, load_bundle

    device, dtype = device_and_dtype(args, GPU_DTYPE)
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
    run_program(main)
