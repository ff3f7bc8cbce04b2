"""``python -m colorflux_core.evaluation study``: run a user study on folders of results."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from ...cli.command_line import DONE, tell
from ...cli.flags import Parser, name_and_place, whole_number

PROG = "evaluation study"

DESCRIPTION = """\
A blind user study: people choose between two methods' results for the same photo, pair by pair, on
a page that this machine serves. No account is needed, and nothing leaves the machine.

  new      create a study from a benchmark and folders of results
  serve    serve its page to any number of participants; stop with Ctrl+C, restart at any time
  results  write win rates with intervals

Each has its own --help.
"""

NEW = """\
Create a study. Each participant sees every pair of results once; one of the two is always the
reference method's (paper, section 9). Sides and order are random, balanced, and determined by the
seed and the participant's name.
"""

NEW_EXAMPLES = """\
examples:
  as in the paper, on old photos:
    python -m colorflux_core.evaluation study new bench -o study --set real \\
      --method ColorFLUX=results/colorflux --method DDColor=results/ddcolor
  every method against every other, sessions of 60 pairs, "equal" allowed:
    python -m colorflux_core.evaluation study new bench -o study --round-robin --pairs 60 --ties \\
      --method ColorFLUX=a --method DDColor=b --method DeOldify=c
"""

SERVE = """\
Serve the study's page. Every answer is saved before the next pair appears; participants continue
where they stopped, under the name that they gave.

With --host 0.0.0.0, phones and computers on the same network can open the page as well. Its address
then has a secret part, which every participant needs; the connection is not encrypted.
"""

RESULTS = """\
Write results.md, results.csv and results.svg: how often each method won, with intervals. Run it at
any time; participants never see the results.
"""


def parse(argv: Sequence[str]) -> argparse.Namespace:
    p = Parser(PROG, "{new,serve,results} ...", DESCRIPTION, "")
    commands = p.add_subparsers(dest="command", required=True, prog=PROG, metavar="COMMAND")

    new = commands.add_parser(
        "new",
        help="create a study from a benchmark and folders of results",
        usage="BENCH -o STUDY --method NAME=FOLDER --method NAME=FOLDER [options]",
        description=NEW,
        epilog=NEW_EXAMPLES,
    )
    new.add_argument("bench", type=Path, metavar="BENCH", help="folder written by evaluation sets")
    new.add_argument(
        "-o", "--output", required=True, type=Path, metavar="STUDY", help="folder for the study"
    )
    comparison = new.add_argument_group("comparison")
    comparison.add_argument(
        "--method",
        action="append",
        required=True,
        type=name_and_place,
        metavar="NAME=FOLDER",
        help="a method's results, named like the benchmark's images; give at least two",
    )
    against = comparison.add_mutually_exclusive_group()
    against.add_argument(
        "--reference",
        metavar="NAME",
        help="method on one side of every pair (default: the first --method)",
    )
    against.add_argument(
        "--round-robin", action="store_true", help="compare all methods with each other"
    )
    comparison.add_argument(
        "--set",
        action="append",
        metavar="NAME",
        help="use only this benchmark set; repeatable (default: all)",
    )
    session = new.add_argument_group("sessions")
    session.add_argument(
        "--pairs",
        type=whole_number(1),
        metavar="N",
        help="pairs per participant (default: every pair once)",
    )
    session.add_argument("--ties", action="store_true", help='allow "equal" as an answer')
    session.add_argument(
        "--seed", type=int, default=0, metavar="N", help="random seed (default: %(default)s)"
    )
    session.add_argument(
        "--max-side",
        type=whole_number(0),
        default=1600,
        metavar="N",
        help="long side of the pictures shown; 0 keeps the photo's size (default: %(default)s)",
    )

    serve = commands.add_parser(
        "serve", help="serve a study's page", usage="STUDY [options]", description=SERVE, epilog=""
    )
    serve.add_argument("study", type=Path, metavar="STUDY")
    serve.add_argument("--port", type=int, default=8765, metavar="N", help="default: %(default)s")
    serve.add_argument(
        "--host",
        default="127.0.0.1",
        metavar="ADDRESS",
        help="0.0.0.0 opens the page to the local network (default: %(default)s)",
    )

    results = commands.add_parser(
        "results",
        help="write win rates with intervals",
        usage="STUDY [-o FOLDER]",
        description=RESULTS,
        epilog="",
    )
    results.add_argument("study", type=Path, metavar="STUDY")
    results.add_argument(
        "-o",
        "--output",
        type=Path,
        metavar="FOLDER",
        help="folder for the results (default: the study's folder)",
    )
    return p.parse_args(argv)


def run(args: argparse.Namespace) -> int:
    """Run a subcommand and return the exit status; raises ColorFluxError if it fails."""
    {"new": run_new, "serve": run_serve, "results": run_results}[args.command](args)
    return DONE


def run_new(args: argparse.Namespace) -> None:
    """Create a study."""
    from ..benchmark.methods import Method
    from ..benchmark.sets import chosen_sets, read_sets
    from .create import create_study

    methods = [Method(name, Path(place)) for name, place in args.method]
    study = create_study(
        args.output,
        chosen_sets(read_sets(args.bench), args.set),
        methods,
        None if args.round_robin else args.reference or methods[0].name,
        seed=args.seed,
        pairs=args.pairs,
        ties=args.ties,
        max_side=args.max_side,
    )
    pairs = len(study.schedule(""))
    tell(f"{len(study.shown)} images, {pairs} pairs per participant; serve the page with")
    tell(f"  python -m colorflux_core.evaluation study serve {args.output}")


def run_serve(args: argparse.Namespace) -> None:
    """Serve a study's page until Ctrl+C."""
    from .server import StudyServer

    with StudyServer(args.study, args.host, args.port) as server:
        tell(f"Serving the study at {server.url} (press Ctrl+C to stop)")
        if server.is_open:
            tell(
                "Anyone on this network with that address can take part. The connection is not"
                " encrypted. Answers are only saved on this machine."
            )
        with suppress(KeyboardInterrupt):
            server.serve_forever()


def run_results(args: argparse.Namespace) -> None:
    """Write and print a study's results."""
    from .report import write_results

    output = args.output or args.study
    print(write_results(args.study, output), end="")
    tell(f"Saved as results.md, results.csv and results.svg in {output}")
