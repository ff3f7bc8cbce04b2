"""``python -m colorflux_core.evaluation sets|run|study``."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module

from tqdm.contrib.logging import logging_redirect_tqdm

from ..cli.command_line import DONE, REFUSED, exit_status, run_program, tell

PROG = "evaluation"

HELP = """\
usage: python -m colorflux_core.evaluation {sets,run,study} ...

Measure how well photos are colorized. Three commands, each with its own --help:

  sets    build benchmark sets from photos: gray, faded and then gray, and real old photos
  run     compare methods on those sets: metrics, judges, and a report to read in a browser
  study   let people choose between methods, pair by pair, on a page that this machine serves

From your photos to a report on the bundled model:

  python -m colorflux_core.evaluation sets PHOTOS -o bench
  python -m colorflux_core.evaluation run bench -o report --method ColorFLUX=bundle:nano
"""

COMMANDS = {"sets": ".sets_command", "run": ".run_command", "study": ".study.command"}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status.

    Raises:
        SystemExit: by argparse, for --help and for invalid arguments.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help"):
        print(HELP, end="")
        return DONE if arguments else REFUSED
    name = arguments[0]
    if name not in COMMANDS:
        tell(f"{PROG}: error: there is no command {name!r}: use sets, run or study")
        return REFUSED
    # Imported on demand, because each command needs different libraries.
    command = import_module(COMMANDS[name], __package__)
    with logging_redirect_tqdm():  # A warning gets a line of its own, above the progress bar.
        return exit_status(
            f"{PROG} {name}",
            lambda: command.run(command.parse(arguments[1:])),
            extra="evaluation",
        )


if __name__ == "__main__":
    run_program(main)
