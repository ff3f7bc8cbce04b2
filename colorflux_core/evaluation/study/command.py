"""``python -m colorflux_core.evaluation study``: run a user study on folders of results."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from ...cli.command_line import DONE, Parser, at_least, name_and_place, tell

PROG = "evaluation study"

DESCRIPTION = """\
People choose between two methods' results for the same photo, pair by pair, without knowing which
is whose, on a page of this machine. No account is needed, and nothing leaves the machine.

  new      a study from a benchmark and folders of results
  serve    its page, for any number of participants; stop it with Ctrl+C, go on at any time
  results  win rates with intervals

Each has its own --help.
"""

NEW = """\
Make a study. Each participant sees every pair of results once: one side is always the reference
method's, the other one of the others' (paper, section 9). Sides and order are random, balanced,
and follow from the seed and the participant's name.
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
Show the study's page. Every answer is on the disk before the next pair appears; participants go on
where they stopped, under the name that they gave.

With --host 0.0.0.0, phones and computers on the same network can open the page, too. Then it has a
secret part in its address, which every participant needs; the connection is not encrypted.
"""

RESULTS = """\
Write results.md, results.csv and results.svg: how often each method won, with intervals. It can be
asked for at any time; participants never see it.
"""


def parse(argv: Sequence[str]) -> argparse.Namespace:
    p = Parser(PROG, "{new,serve,results} ...", DESCRIPTION, "")
    commands = p.add_subparsers(dest="command", required=True, prog=PROG, metavar="COMMAND")

    new = commands.add_parser(
        "new",
        help="a study from a benchmark and folders of results",
        usage="BENCH -o STUDY --method NAME=FOLDER --method NAME=FOLDER [options]",
        description=NEW,
        epilog=NEW_EXAMPLES,
    )
    new.add_argument("bench", type=Path, metavar="BENCH", help="what evaluation sets built")
    new.add_argument(
        "-o", "--output", required=True, type=Path, metavar="STUDY", help="a folder for the study"
    )
    new.add_argument(
        "--method",
        action="append",
        required=True,
        type=name_and_place,
        metavar="NAME=FOLDER",
        help="a method's results, named like the benchmark's images; two or more",
    )
    against = new.add_mutually_exclusive_group()
    against.add_argument(
        "--reference", metavar="NAME", help="one side of every pair; default: the first --method"
    )
    against.add_argument(
        "--round-robin", action="store_true", help="compare all methods with each other"
    )
    new.add_argument(
        "--set",
        action="append",
        metavar="NAME",
        help="take only this benchmark set; may be repeated; default: all",
    )
    new.add_argument(
        "--pairs",
        type=at_least(1),
        metavar="N",
        help="a session's length; default: every pair once",
    )
    new.add_argument("--ties", action="store_true", help='allow "equal" as an answer')
    new.add_argument(
        "--seed", type=int, default=0, metavar="N", help="of all that is random (%(default)s)"
    )
    new.add_argument(
        "--max-side",
        type=at_least(0),
        default=1600,
        metavar="N",
        help="long side of the pictures that are shown (%(default)s); 0 is the photo's own",
    )

    serve = commands.add_parser(
        "serve", help="its page", usage="STUDY [options]", description=SERVE, epilog=""
    )
    serve.add_argument("study", type=Path, metavar="STUDY")
    serve.add_argument("--port", type=int, default=8765, metavar="N", help="(%(default)s)")
    serve.add_argument(
        "--host",
        default="127.0.0.1",
        metavar="ADDRESS",
        help="0.0.0.0 opens the page to the local network; default: this machine only",
    )

    results = commands.add_parser(
        "results",
        help="win rates with intervals",
        usage="STUDY [-o FOLDER]",
        description=RESULTS,
        epilog="",
    )
    results.add_argument("study", type=Path, metavar="STUDY")
    results.add_argument(
        "-o", "--output", type=Path, metavar="FOLDER", help="default: the study's folder"
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
