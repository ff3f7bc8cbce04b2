"""``python -m colorflux_core.evaluation sets``: benchmark sets from photos."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

from ..cli.command_line import DONE, SOME_FAILED, Parser, at_least, tell
from ..errors import ColorFluxError
from ..photos.finding import find_photos
from .benchmark.build import Recipe, build_sets
from .benchmark.sets import MANIFEST, read_sets

PROG = "evaluation sets"

DESCRIPTION = """\
Build the paper's three benchmark sets (5.1), the same in every build:

  synthesized   color photos in grayscale
  augmented     color photos that are faded first, then in grayscale
  real          old photos as they are, of --old

sets.csv in the folder names every image's source, its seed and its fading. Folders are read with
their subfolders. Photos that cannot be read, or should have color and are gray, are left out and
named.
"""

EXAMPLES = """\
examples:
  the paper's, from DIV2K's validation set and a folder of old photos:
    python -m colorflux_core.evaluation sets DIV2K_valid_HR --old RealOldPhotos -o bench
  a quick one, photos at most 512 pixels long:
    python -m colorflux_core.evaluation sets kodak -o bench --max-side 512

exit status:
  0  all done
  1  the sets are built; some photos were left out
  2  nothing was built
"""


def parse(argv: Sequence[str]) -> argparse.Namespace:
    p = Parser(PROG, "[PHOTO_OR_FOLDER...] -o FOLDER [options]", DESCRIPTION, EXAMPLES)
    p.add_argument("photos", nargs="*", type=Path, metavar="PHOTO_OR_FOLDER", help="color photos")
    p.add_argument(
        "--old",
        nargs="+",
        type=Path,
        default=[],
        metavar="PHOTO_OR_FOLDER",
        help="old photos, for the set real",
    )
    p.add_argument(
        "-o", "--output", required=True, type=Path, metavar="FOLDER", help="for the sets"
    )
    p.add_argument(
        "--seed", type=at_least(0), default=Recipe.seed, help="of the fadings (%(default)s)"
    )
    p.add_argument(
        "--fading-low",
        type=float,
        default=Recipe.fading_low,
        metavar="X",
        help="the strongest fading of brightness, contrast and saturation (%(default)s)",
    )
    p.add_argument(
        "--fading-high",
        type=float,
        default=Recipe.fading_high,
        metavar="X",
        help="the mildest fading (%(default)s)",
    )
    p.add_argument(
        "--max-side",
        type=at_least(0),
        default=Recipe.max_side,
        metavar="N",
        help="shrink photos whose long side has more pixels; default: leave them",
    )
    p.add_argument(
        "--square",
        type=at_least(0),
        default=Recipe.square,
        metavar="N",
        help="squash photos to N x N instead",
    )
    args = p.parse_args(argv)
    if not args.photos and not args.old:
        p.error("name color photos, or --old ones")
    return args


def run(args: argparse.Namespace) -> int:
    """Returns the exit status. Raises ColorFluxError as :func:`build_sets` does."""
    recipe = Recipe(**{field.name: getattr(args, field.name) for field in fields(Recipe)})
    if args.output.resolve() in {path.resolve() for path in (*args.photos, *args.old)}:
        raise ColorFluxError(f"{args.output} holds the photos: choose another folder with -o")
    photos, old = (photos_in(given, args.output) for given in (args.photos, args.old))
    left_out = build_sets(photos, old, args.output, recipe)
    for reason in left_out:
        tell(f"left out: {reason}")
    for benchmark in read_sets(args.output):
        tell(f"{benchmark.name}: {len(benchmark.items)} images")
    return SOME_FAILED if left_out else DONE


def photos_in(given: Sequence[Path], output: Path) -> list[Path]:
    """Each photo once, but none of a benchmark that lies in a folder of photos."""

    def of_benchmark(path: Path, top: Path) -> bool:
        return any((above / MANIFEST).is_file() for above in path.parents if top in above.parents)

    found = [(path, top) for top in given for path in find_photos(top, leave_out=output)]
    return list(dict.fromkeys(path for path, top in found if not of_benchmark(path, top)))
