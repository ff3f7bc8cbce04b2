"""The command line: photos and folders of photos in, the same in color out."""

from __future__ import annotations

import argparse
import sys
import time
import warnings
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from .errors import ColorFluxError

# What needs torch is imported when the arguments are sound, so that help and mistakes take no time.
if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from .batch import StepReport
    from .bundle import Bundle
    from .photo import Photo
    from .settings import Settings

PROG = "colorize"
DONE, SOME_FAILED, REFUSED, INTERRUPTED = 0, 1, 2, 130

FORMATS = ("jpg", "png", "tif", "webp")
PARTS = ("transformer", "vae", "image_encoder", "redux", "controlnet")

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
  with FLUX.1-dev, on a GPU:
    python -m colorflux_core.colorize scans -o colorized \\
      --transformer FLUX.1-dev --vae FLUX.1-dev --image-encoder FLUX.1-Redux-dev \\
      --redux FLUX.1-Redux-dev --controlnet gray-controlnet --lora pro_dpo.safetensors

exit status:
  0    all done
  1    some photos failed, each named with the reason; the others are done
  2    nothing was done: an argument, the model or the output cannot be used
  130  interrupted; finished photos are whole, and the same command goes on from there
"""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(REFUSED, f"{PROG}: error: {message} (--help explains)\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status.

    Raises SystemExit where argparse does: for --help and for arguments that cannot be parsed.
    """
    args = _parse(argv)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return _colorize(args)
    except ColorFluxError as error:
        _tell_error(str(error))
        return REFUSED
    except ModuleNotFoundError as error:
        _tell_error(f"{error.name} is not installed: pip install --editable '.[headless]'")
        return REFUSED
    except OSError as error:
        _tell_error(str(error))
        return REFUSED
    except KeyboardInterrupt:
        _tell(f"{PROG}: interrupted; the same command goes on from here.")
        return INTERRUPTED


def parser() -> argparse.ArgumentParser:
    """The arguments; every default that concerns the model is None, which means the bundle's."""
    p = _Parser(
        prog=PROG,
        usage="python -m colorflux_core.colorize PHOTO_OR_FOLDER... -o FILE_OR_FOLDER [options]",
        description="Colorize old photos. Each comes back at its own size and under its own name.\n"
        "Photos that are colorized already are skipped, so an interrupted run can be repeated.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    p.add_argument(
        "photos",
        nargs="+",
        type=Path,
        metavar="PHOTO_OR_FOLDER",
        help="JPEG, PNG, TIFF or WebP of 1, 8 or 16 bits; folders with their subfolders",
    )
    files = p.add_argument_group("files")
    files.add_argument(
        "-o",
        "--output",
        required=True,
        type=Path,
        metavar="FILE_OR_FOLDER",
        help="where the result goes: a folder, or a file for a single photo",
    )
    files.add_argument(
        "--format",
        choices=FORMATS,
        help="of the results in a folder; default: each photo's own",
    )
    files.add_argument(
        "--overwrite", action="store_true", help="make results anew that are there already"
    )
    files.add_argument(
        "--dry-run", action="store_true", help="only list what would be done; loads no model"
    )
    files.add_argument(
        "--max-megapixels",
        type=float,
        metavar="N",
        help="refuse photos of more pixels than this; raise it for very large scans",
    )
    files.add_argument("--quiet", action="store_true", help="print nothing but errors")

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
    model.add_argument(
        "--device", default="auto", help="auto (the default): cuda or mps if there is one, else cpu"
    )
    model.add_argument(
        "--dtype",
        default="auto",
        choices=("auto", "float32", "bfloat16", "float16"),
        help="auto (the default): float32 on the cpu, else bfloat16",
    )
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
    return args


def _colorize(args: argparse.Namespace) -> int:
    from .batch import plan, prepare, run
    from .photo import MAX_MEGAPIXELS, load_photo
    from .settings import Settings

    with_flags(Settings(), args)  # for its limits, before a model is loaded
    jobs = plan(args.photos, args.output, args.format and f".{args.format}")
    todo = [job for job in jobs if args.overwrite or not job.is_done]
    skipped = len(jobs) - len(todo)
    if skipped and not args.quiet:
        _tell(f"{skipped} of {len(jobs)} already there (--overwrite makes them anew)")
    if args.dry_run:
        for job in todo:
            print(f"{job.source} -> {job.target}")
    if args.dry_run or not todo:
        return DONE

    prepare(todo)
    limit = MAX_MEGAPIXELS if args.max_megapixels is None else args.max_megapixels
    reference = None
    if args.reference is not None:
        reference = load_photo(args.reference, max_megapixels=limit).pixels
    bundle = _load(args)
    settings = with_flags(bundle.settings, args)

    from .colorization import colorize

    def in_color(photo: Photo, on_step: StepReport) -> Tensor:
        return colorize(bundle.pipeline, photo.pixels, settings, reference, on_step)

    started = time.perf_counter()
    failures = run(todo, in_color, max_megapixels=limit, quiet=args.quiet)
    for failure in failures:
        _tell_error(failure)
    done = len(todo) - len(failures)
    if len(jobs) > 1 and done and not args.quiet:
        rate = (time.perf_counter() - started) / done
        _tell(f"{done} colorized, {len(failures)} failed; {rate:.1f} s a photo")
    return SOME_FAILED if failures else DONE


def _load(args: argparse.Namespace) -> Bundle:
    import torch

    _quiet_libraries()
    from .bundle import assemble, load_bundle

    device = _device(args.device)
    if args.dtype != "auto":
        dtype: torch.dtype = getattr(torch, args.dtype)
    else:
        dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
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


def _device(name: str) -> torch.device:
    import torch

    if name == "auto":
        accelerators = (("cuda", torch.cuda), ("mps", torch.backends.mps))
        name = next((kind for kind, backend in accelerators if backend.is_available()), "cpu")
    try:
        return torch.device(name)
    except RuntimeError as error:
        raise ColorFluxError(f"--device {name}: use auto, cpu, cuda, cuda:1 or mps.") from error


def _quiet_libraries() -> None:
    """What the libraries remark on each other is nothing to the user of a command."""
    import diffusers
    import transformers

    for library in (diffusers, transformers):
        library.utils.logging.set_verbosity_error()
        library.utils.logging.disable_progress_bar()


def _tell(message: str) -> None:
    print(message, file=sys.stderr)


def _tell_error(message: str) -> None:
    _tell(f"{PROG}: error: {' '.join(message.split())}")


if __name__ == "__main__":
    import signal

    signal.signal(signal.SIGTERM, signal.default_int_handler)
    sys.exit(main())
