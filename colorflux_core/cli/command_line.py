"""Shared by the commands: exit status, errors, devices, and the flags of runs over photos."""

from __future__ import annotations

import argparse
import signal
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from ..errors import ColorFluxError
from .flags import Parser, named_path

# torch is imported once the arguments are valid, so that --help and mistakes take no time.
if TYPE_CHECKING:
    import torch

    from .batch import Task

DONE, SOME_FAILED, REFUSED, INTERRUPTED = 0, 1, 2, 130

FORMATS = ("jpg", "png", "tif", "webp")

EXIT_STATUS = """\
exit status:
  0    all done
  1    some photos failed, each named with the reason; the others are done
  2    nothing was done: an argument, the model or the output cannot be used
  130  interrupted; finished photos are complete, and the same command continues from there
"""


def photo_parser(prog: str, description: str, examples: str) -> Parser:
    """A parser with the arguments that :func:`work_through` reads."""
    usage = "PHOTO_OR_FOLDER... -o FILE_OR_FOLDER [options]"
    p = Parser(prog, usage, description, f"{examples}\n{EXIT_STATUS}")
    p.add_argument(
        "photos",
        nargs="+",
        type=named_path,
        metavar="PHOTO_OR_FOLDER",
        help="JPEG, PNG, TIFF, WebP, BMP, GIF, AVIF or (with pillow-heif) HEIC files; folders "
        "include subfolders",
    )
    files = p.add_argument_group("files")
    files.add_argument(
        "-o",
        "--output",
        required=True,
        type=_output,
        metavar="FILE_OR_FOLDER",
        help="where to write the results: a folder, or a file for a single photo",
    )
    files.add_argument(
        "--format",
        choices=FORMATS,
        help="file format of the results in a folder (default: each photo's own)",
    )
    files.add_argument("--overwrite", action="store_true", help="overwrite existing results")
    files.add_argument(
        "--dry-run", action="store_true", help="list what would be done, without loading a model"
    )
    files.add_argument(
        "--max-megapixels",
        type=float,
        metavar="N",
        help="reject photos with more megapixels than this; raise it for very large scans"
        " (default: 100)",
    )
    files.add_argument(
        "--no-provenance",
        action="store_true",
        help="do not write into the results that, how and when they were made (XMP)",
    )
    files.add_argument("--quiet", action="store_true", help="print only errors")
    return p


def _output(text: str) -> Path:
    if text == "-":
        raise argparse.ArgumentTypeError("standard output is not possible: name a file or folder")
    return named_path(text)


def add_device(group: argparse._ArgumentGroup, gpu_dtype: str) -> None:
    """--device and --dtype, which :func:`device_and_dtype` reads."""
    group.add_argument(
        "--device",
        default="auto",
        metavar="DEVICE",
        help="cpu, cuda, cuda:1 or mps (default: auto, which is cuda or mps if available, "
        "else cpu)",
    )
    group.add_argument(
        "--dtype",
        default="auto",
        choices=("auto", "float32", "bfloat16", "float16"),
        help="precision of the weights (default: auto, which is float32 on the CPU, else "
        f"{gpu_dtype})",
    )


def device_and_dtype(args: argparse.Namespace, gpu_dtype: str) -> tuple[torch.device, torch.dtype]:
    """The device and dtype of the flags. Raises ColorFluxError for a name torch does not know."""
    import torch

    name = args.device
    if name == "auto":
        accelerators = (("cuda", torch.cuda), ("mps", torch.backends.mps))
        name = next((kind for kind, backend in accelerators if backend.is_available()), "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ColorFluxError(f"--device {name}: use auto, cpu, cuda, cuda:1 or mps.") from error
    dtype = args.dtype
    if dtype == "auto":
        dtype = "float32" if device.type == "cpu" else gpu_dtype
    return device, getattr(torch, dtype)


def exit_status(prog: str, command: Callable[[], int], extra: str = "headless") -> int:
    """Run a command and return its exit status; every error is one line on stderr.

    Args:
        prog: Begins the error's line.
        command: Parses the arguments and does the work; returns DONE or SOME_FAILED.
        extra: The extra of pyproject.toml that installs what a missing module belongs to.

    Raises:
        SystemExit: for ``--help``.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return command()
    except (ColorFluxError, OSError) as error:
        tell_error(prog, str(error))
        return REFUSED
    except ModuleNotFoundError as error:
        tell_error(prog, f"{error.name} is not installed: pip install --editable '.[{extra}]'")
        return REFUSED
    except KeyboardInterrupt as stop:
        tell(f"{prog}: {str(stop) or 'interrupted; the same command continues from here'}")
        return INTERRUPTED


def run_program(main: Callable[[], int]) -> NoReturn:
    """What ``python -m`` does: SIGTERM and SIGHUP stop ``main`` as Ctrl+C does."""
    for name in ("SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)  # Windows has no SIGHUP, and nohup ignores it.
        if number is not None and signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, signal.default_int_handler)
    sys.exit(main())


def work_through(prog: str, args: argparse.Namespace, load: Callable[[float], Task]) -> int:
    """Do all photos that are not done yet; returns the exit status.

    Args:
        prog: For error messages.
        args: Of :func:`photo_parser`.
        load: Takes the megapixel limit, loads the model and returns the task; not called if all
            photos are done.

    Raises:
        ColorFluxError: as :mod:`colorflux_core.cli.batch` does, before or at the first photo.
    """
    from ..files import remove_stale
    from ..photos.finding import left_out
    from ..photos.photo import MAX_MEGAPIXELS
    from .batch import list_jobs, make_folders, process_jobs

    jobs = list_jobs(args.photos, args.output, args.format and f".{args.format}")
    others = sum((left_out(given, args.output) for given in args.photos), Counter())
    if others and not args.quiet:
        counts = ", ".join(f"{count} {suffix}" for suffix, count in sorted(others.items()))
        tell(f"left out: {counts}")
    if not args.dry_run:
        for folder in {job.target.parent for job in jobs}:
            remove_stale(folder)
    todo = [job for job in jobs if args.overwrite or not job.is_done]
    skipped = len(jobs) - len(todo)
    if skipped and not args.quiet:
        tell(f"{skipped} of {len(jobs)} already there (--overwrite replaces them)")
    if args.dry_run:
        for job in todo:
            print(_printable(f"{job.source} -> {job.target}"))
    if args.dry_run or not todo:
        return DONE

    make_folders(todo)
    limit = MAX_MEGAPIXELS if args.max_megapixels is None else args.max_megapixels
    task = load(limit)
    started = time.perf_counter()
    failures = process_jobs(todo, task, max_megapixels=limit, quiet=args.quiet)
    for failure in failures:
        tell_error(prog, failure)
    done = len(todo) - len(failures)
    if len(jobs) > 1 and done and not args.quiet:
        rate = (time.perf_counter() - started) / done
        tell(f"{done} {task.done}, {len(failures)} failed; {rate:.1f} s a photo")
    return SOME_FAILED if failures else DONE


def _printable(line: str) -> str:
    """With escapes for what standard output cannot show, such as names that are not UTF-8."""
    encoding = sys.stdout.encoding or "utf-8"
    return line.encode(encoding, "backslashreplace").decode(encoding)


def quiet_libraries() -> None:
    """Silence library warnings that users cannot act on."""
    import diffusers
    import transformers

    for library in (diffusers, transformers):
        library.utils.logging.set_verbosity_error()
        library.utils.logging.disable_progress_bar()


def tell(message: str) -> None:
    print(message, file=sys.stderr)


def tell_error(prog: str, message: str) -> None:
    tell(f"{prog}: error: {' '.join(message.split())}")
