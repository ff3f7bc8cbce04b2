"""``python -m colorflux_core.evaluation run``: evaluate methods on benchmark sets."""

from __future__ import annotations

import argparse
import os
import shlex
from collections import Counter
from collections.abc import Iterator, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

from ..cli.command_line import DONE, SOME_FAILED, add_device, tell
from ..cli.flags import Parser, name_and_place, whole_number
from ..errors import ColorFluxError
from .judges.options import add_judges, chosen_judges
from .run_inputs import (
    BUNDLE,
    ON_GPU,
    colorize_bundles,
    method,
    model_scores,
    require_inputs,
    require_known_scores,
)

if TYPE_CHECKING:
    from .scores import Score

PROG = "evaluation run"

DESCRIPTION = """\
Compare methods on benchmark sets, with metrics that need no download and with judges that you have,
and write a report: report.html to look at, report.md, and CSV files with every score.

A method is a bundle, which colorizes the sets first, or a folder of another program's results with
one subfolder per set. Results are matched to the sets' images by file name.

Everything is kept in the report's folder: run it again to continue, or to add a method.
"""

EXAMPLES = """\
examples:
  your own model, the embedded one and another program's results:
    python -m colorflux_core.evaluation run bench -o report \\
      --method ColorFLUX=bundle:my-bundle --method nano=bundle:nano --method DDColor=results/ddcolor
  the gray images themselves, for comparison:
    ... --method Gray=bench
  with the paper's Qwen-score, from your own server (vLLM and others) or from a folder:
    ... --judge qwen-score=Qwen/Qwen2.5-VL-72B-Instruct@http://127.0.0.1:8000/v1
    ... --judge qwen-score=Qwen2.5-VL-7B-Instruct

exit status:
  0    all done
  1    the report is written; some results or verdicts are missing, each named
  2    no report was written: an argument cannot be used
  130  interrupted; the same command continues from there
"""


def parse(argv: Sequence[str]) -> argparse.Namespace:
    p = Parser(PROG, "BENCH -o REPORT --method NAME=PLACE... [options]", DESCRIPTION, EXAMPLES)
    p.add_argument("bench", type=Path, metavar="BENCH", help="folder written by evaluation sets")
    comparison = p.add_argument_group("comparison")
    comparison.add_argument(
        "--method",
        required=True,
        action="append",
        type=name_and_place,
        metavar="NAME=PLACE",
        help="name in the report = folder of results, bundle:FOLDER or bundle:nano; repeatable",
    )
    comparison.add_argument(
        "--set",
        action="append",
        metavar="NAME",
        help="use only this benchmark set; repeatable (default: all)",
    )
    comparison.add_argument(
        "--reference",
        metavar="NAME",
        help="method to compare the others with (default: the first)",
    )
    report = p.add_argument_group("report")
    report.add_argument(
        "-o", "--output", required=True, type=Path, metavar="REPORT", help="folder for the report"
    )
    report.add_argument(
        "--shown",
        type=whole_number(0),
        default=12,
        metavar="N",
        help="pictures to show of each set (default: %(default)s)",
    )
    report.add_argument(
        "--seed",
        type=whole_number(0),
        default=0,
        metavar="N",
        help="random seed of the intervals (default: %(default)s)",
    )
    add_device(p.add_argument_group("device for bundles, features and local judges"), ON_GPU)

    metrics = p.add_argument_group("metrics")
    metrics.add_argument(
        "--frames", action="store_true", help="treat numbered images as frames and measure flicker"
    )
    metrics.add_argument(
        "--features",
        type=Path,
        metavar="FOLDER",
        help="measure distances in the features of a CLIP, SigLIP or DINOv2 (transformers folder)",
    )
    metrics.add_argument(
        "--lpips",
        type=Path,
        metavar="FILE",
        help="measure LPIPS with these weights (safetensors file)",
    )
    metrics.add_argument(
        "--scores",
        action="append",
        default=[],
        type=Path,
        metavar="FILE",
        help="add scores from a file like a report's scores.csv; metrics that are measured here"
        " are ignored",
    )
    metrics.add_argument(
        "--lower",
        nargs="+",
        default=[],
        metavar="METRIC",
        help="metrics of --scores for which lower is better",
    )
    metrics.add_argument(
        "--workers",
        type=whole_number(0),
        default=os.cpu_count() or 1,
        metavar="N",
        help="processes that measure; 0 measures in the main process (default: %(default)s)",
    )
    add_judges(p)
    args = p.parse_args(argv)
    if len({name for name, _ in args.method}) < len(args.method):
        p.error("two methods have the same name")
    folders = [method(args, *named).folder for named in args.method if named[1].startswith(BUNDLE)]
    if len({*folders}) < len(folders):
        p.error(
            "two bundles' names differ only in punctuation: their results need separate folders"
        )
    if len({name for name, _ in args.judge}) < len(args.judge):
        p.error("a judge is named twice: write a separate report for each")
    args.words = shlex.join(["evaluation", "run", *argv])
    return args


def run(args: argparse.Namespace) -> int:
    """Evaluate the methods, write the report and return the exit status.

    Raises:
        ColorFluxError: if an input cannot be used; checked before the long work where possible.
    """
    from .benchmark.sets import chosen_sets, read_sets
    from .judges.runner import judge_methods
    from .metrics.measure import measure
    from .metrics.metrics import COLUMNS
    from .report.report import reference_among, write_report
    from .scores import Column, read_scores

    if args.output.exists() and not args.output.is_dir():
        raise ColorFluxError(f"{args.output} is a file: choose a folder with -o")
    sets = chosen_sets(read_sets(args.bench), args.set)
    methods = [method(args, name, place) for name, place in args.method]
    reference = reference_among([known.name for known in methods], args.reference)
    given = [score for path in args.scores for score in read_scores(path)]
    require_known_scores(given, args.lower, sets, methods)
    judges = list(chosen_judges(args))
    require_inputs(args, methods, sets)
    colorize_bundles(args, methods, sets)

    scores = measure(
        sets, methods, args.output / "metrics.jsonl", workers=args.workers, frames=args.frames
    )
    measured = {score.metric for score in scores}
    columns = [column for column in COLUMNS if column.key in measured]
    for more_columns, more_scores in model_scores(args, sets, methods):
        columns += more_columns
        scores += more_scores
    facts = {
        "Command": args.words,
        "ColorFLUX": package_version(),
        "Resized": resized_results(scores),
    }
    rationales: dict[tuple[str, str, str], list[str]] = {}
    failures = [*missing_results(scores)]
    for judge, backend in judges:
        verdicts = judge_methods(
            judge,
            backend,
            sets,
            methods,
            args.output / f"{judge.name}.jsonl",
            attempts=args.judge_attempts,
            concurrency=args.judge_concurrency,
        )
        scores += verdicts.scores
        columns += [
            Column(metric, metric, "higher", explanation=f"Scored by the judge {judge.name}.")
            for metric in judge.metrics
        ]
        for case, text in verdicts.rationales.items():
            if text:
                rationales.setdefault(case, []).append(f"{judge.name}: {text}")
        facts[f"Judge {judge.name}"] = ", ".join(map(" ".join, verdicts.provenance.items()))
        failures += verdicts.failures
    known = {column.key for column in columns}
    given = [score for score in given if score.metric not in known]
    columns += [
        Column(metric, metric, "lower" if metric in args.lower else "higher")
        for metric in dict.fromkeys(score.metric for score in given)
    ]

    write_report(
        args.output,
        [*scores, *given],
        columns,
        sets,
        methods,
        reference=reference,
        facts=facts,
        rationales={case: "\n".join(texts) for case, texts in rationales.items()},
        seed=args.seed,
        shown=args.shown,
    )
    for failure in failures:
        tell(failure)
    tell(str(args.output / "report.html"))
    return SOME_FAILED if failures else DONE


def missing_results(scores: Sequence[Score]) -> Iterator[str]:
    """Yield a line for each set for which a method has only part of the results."""
    from .scores import TRUTH

    has: dict[tuple[str, str], list[bool]] = {}
    for score in scores:
        if score.metric == "colorfulness" and score.method != TRUTH:
            has.setdefault((score.method, score.set), []).append(not score.is_missing)
    for (name, of), present in has.items():
        if 0 < sum(present) < len(present):
            yield f"{name}: {sum(present)} of {len(present)} results for {of}"


def resized_results(scores: Sequence[Score]) -> str:
    """How many results of each method had another size than the photo."""
    from .metrics.metrics import RESIZED

    found = Counter(score.method for score in scores if score.metric == RESIZED and score.value > 0)
    return ", ".join(f"{count} of {name}" for name, count in found.items()) or "none"


def package_version() -> str:
    """The version of the installed package, if it is installed."""
    try:
        return version("colorflux")
    except PackageNotFoundError:
        return "not installed, run from source"
