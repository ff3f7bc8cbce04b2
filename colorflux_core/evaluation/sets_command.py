"""``python -m colorflux_core.evaluation sets``: build benchmark sets from photos."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

from ..cli.command_line import DONE, SOME_FAILED, tell
from ..cli.flags import Parser, whole_number
from ..errors import ColorFluxError
from ..photos.finding import find_photos
from .benchmark.build import Recipe, build_sets
from .benchmark.sets import MANIFEST, read_sets

PROG = "evaluation sets"

DESCRIPTION = """\
Build the paper's three benchmark sets (5.1), the same in every build:

  synthesized   color photos in grayscale
  augmented     color photos that are faded first, then in grayscale
  real          old photos (--old) as they are

sets.csv in the output folder records every image's source, seed and fading. Folders include
subfolders. Photos that cannot be read, and gray ones among the color photos, are skipped and named.
"""

EXAMPLES = """\
examples:
  the paper's sets, from DIV2K's validation set and a folder of old photos:
    python -m colorflux_core.evaluation sets DIV2K_valid_HR --old RealOldPhotos -o bench
  a quick benchmark, with photos of at most 512 pixels:
    python -m colorflux_core.evaluation sets kodak -o bench --max-side 512

exit status:
  0  all done
  1  the sets are built; some photos were skipped
  2  nothing was built
"""


def parse(argv: Sequence[str]) -> argparse.Namespace:
    p = Parser(PROG, "[PHOTO_OR_FOLDER...] -o FOLDER [options]", DESCRIPTION, EXAMPLES)
    p.add_argument("photos", nargs="*", type=Path, metavar="PHOTO_OR_FOLDER", help="color photos")
    files = p.add_argument_group("files")
    files.add_argument(
        "--old",
        nargs="+",
        type=Path,
        default=[],
        metavar="PHOTO_OR_FOLDER",
        help="old photos for the set real",
    )
    files.add_argument(
        "-o", "--output", required=True, type=Path, metavar="FOLDER", help="folder for the sets"
    )
    images = p.add_argument_group("images")
    images.add_argument(
        "--max-side",
        type=whole_number(0),
        default=Recipe.max_side,
        metavar="N",
        help="shrink photos with a longer long side, in pixels; 0 does not (default: %(default)s)",
    )
    images.add_argument(
        "--square",
        type=whole_number(0),
        default=Recipe.square,
        metavar="N",
        help="resize photos to N x N instead; 0 does not (default: %(default)s)",
    )
    images.add_argument(
        "--fading-low",
        type=float,
        default=Recipe.fading_low,
        metavar="X",
        help="smallest factor on brightness, contrast and saturation (default: %(default)s)",
    )
    images.add_argument(
        "--fading-high",
        type=float,
        default=Recipe.fading_high,
        metavar="X",
        help="largest such factor (default: %(default)s)",
    )
    images.add_argument(
        "--seed",
        type=whole_number(0),
        default=Recipe.seed,
        metavar="N",
        help="random seed of the fading (default: %(default)s)",
    )
    args = p.parse_args(argv)
    if not args.photos and not args.old:
        p.error("name color photos, or --old ones")
    return args


def run(args: argparse.Namespace) -> int:
    """Build the sets and return the exit status; raises ColorFluxError as :func:`build_sets`."""
    recipe = Recipe(**{field.name: getattr(args, field.name) for field in fields(Recipe)})
    if args.output.resolve() in {path.resolve() for path in (*args.photos, *args.old)}:
        raise ColorFluxError(f"{args.output} contains the photos: choose another folder with -o")
    photos, old = (photos_in(given, args.output) for given in (args.photos, args.old))
    left_out = build_sets(photos, old, args.output, recipe)
    for reason in left_out:
        tell(f"skipped: {reason}")
    for benchmark in read_sets(args.output):
        tell(f"{benchmark.name}: {len(benchmark.items)} images")
    return SOME_FAILED if left_out else DONE


def photos_in(given: Sequence[Path], output: Path) -> list[Path]:
    """List each photo once, leaving out benchmarks stored inside a folder of photos."""

    def in_benchmark(path: Path, top: Path) -> bool:
        return any((above / MANIFEST).is_file() for above in path.parents if top in above.parents)

    found = [(path, top) for top in given for path in find_photos(top, leave_out=output)]
    return list(dict.fromkeys(path for path, top in found if not in_benchmark(path, top)))
