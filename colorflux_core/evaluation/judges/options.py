"""Command-line flags of the judges, and the judges and backends they select."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from ...cli.flags import whole_number
from ...errors import ColorFluxError
from . import JUDGES
from .judge import Judge
from .limits import ATTEMPTS, MAX_PIXELS, MAX_TOKENS, TIMEOUT
from .template import read_template

if TYPE_CHECKING:
    from .backend import Backend


def add_judges(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group(
        "judges",
        f"{', '.join(JUDGES)}. Replies are kept in the report's folder.",
    )
    group.add_argument(
        "--judge",
        action="append",
        default=[],
        type=judge_and_place,
        metavar="NAME=PLACE",
        help="MODEL@URL of an OpenAI-compatible server, or a folder of weights for transformers",
    )
    group.add_argument(
        "--template",
        action="append",
        default=[],
        type=judge_and_file,
        metavar="[NAME=]FILE",
        help="replaces a judge's question, for example with the paper's Figure 11"
        f" (default NAME: {next(iter(JUDGES))})",
    )
    group.add_argument(
        "--api-key-file",
        type=Path,
        metavar="FILE",
        help="file with the key, for a server that requires one",
    )
    group.add_argument(
        "--judge-concurrency",
        type=whole_number(1),
        default=4,
        metavar="N",
        help="concurrent requests to a server (default: %(default)s)",
    )
    group.add_argument(
        "--judge-attempts",
        type=whole_number(1),
        default=ATTEMPTS,
        metavar="N",
        help="attempts per image until a reply can be parsed (default: %(default)s)",
    )
    group.add_argument(
        "--judge-timeout",
        type=whole_number(1),
        default=TIMEOUT,
        metavar="SECONDS",
        help="time limit of a request (default: %(default)s)",
    )
    group.add_argument(
        "--judge-max-tokens",
        type=whole_number(1),
        default=MAX_TOKENS,
        metavar="N",
        help="maximum length of a reply (default: %(default)s)",
    )
    group.add_argument(
        "--judge-max-pixels",
        type=whole_number(1),
        default=MAX_PIXELS,
        metavar="N",
        help="shrink larger images before judging (default: %(default)s)",
    )


def judge_and_place(text: str) -> tuple[str, str]:
    name, _, place = text.partition("=")
    if name not in JUDGES or not place:
        raise argparse.ArgumentTypeError(
            f"{text!r} must be NAME=PLACE, with one of the names {', '.join(JUDGES)}"
        )
    return name, place


def judge_and_file(text: str) -> tuple[str, Path]:
    name, _, file = text.partition("=")
    return (name, Path(file)) if name in JUDGES and file else (next(iter(JUDGES)), Path(text))


def chosen_judges(args: argparse.Namespace) -> Iterator[tuple[Judge, Backend]]:
    """Yield each selected judge with its backend.

    Raises:
        ColorFluxError: if a file cannot be read, a model folder has no weights, or a template is
            for a judge that was not selected.
    """
    templates = dict(args.template)
    for name in templates.keys() - dict(args.judge).keys():
        raise ColorFluxError(
            f"--template {templates[name]} is for {name}: also pass --judge {name}=..."
        )
    for name, place in args.judge:
        judge = JUDGES[name]
        if name in templates:
            judge = replace(judge, template=read_template(templates[name], judge.template))
        yield judge, backend(args, place)


def backend(args: argparse.Namespace, place: str) -> Backend:
    from .endpoint import Endpoint, read_api_key
    from .local import LocalModel, weight_files

    limits = {"max_pixels": args.judge_max_pixels, "max_tokens": args.judge_max_tokens}
    if "://" not in place:
        weight_files(Path(place))
        return LocalModel(Path(place), args.device, args.dtype, **limits)
    model, at, url = place.partition("@")
    if not at:
        raise ColorFluxError(
            f"--judge {place}: add the model's name on the server, MODEL@{place};"
            f" {place.rstrip('/')}/models lists them"
        )
    key = Endpoint.api_key if args.api_key_file is None else read_api_key(args.api_key_file)
    return Endpoint(url, model, key, args.judge_timeout, **limits)
