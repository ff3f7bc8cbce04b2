"""The inputs of a run: methods, scores of other programs, and local model weights."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from ..cli.command_line import device_and_dtype, quiet_libraries
from ..errors import ColorFluxError

if TYPE_CHECKING:
    from .benchmark.methods import Method
    from .benchmark.sets import BenchmarkSet
    from .scores import Column, Score

BUNDLE = "bundle:"
ON_GPU = "bfloat16"


def method(args: argparse.Namespace, name: str, place: str) -> Method:
    """Create the method of a ``--method NAME=PLACE``.

    A bundle's results go to the report's folder.
    """
    from .benchmark.methods import Method

    if not place.startswith(BUNDLE):
        return Method(name, Path(place))
    return Method(name, args.output / "results" / re.sub(r"[^\w-]+", "-", name))


def require_known_scores(
    given: Sequence[Score],
    lower: Sequence[str],
    sets: Sequence[BenchmarkSet],
    methods: Sequence[Method],
) -> None:
    """Raise ColorFluxError if scores are for images or methods that are not in this run."""
    from .scores import TRUTH

    images = {(of.name, image) for of in sets for image in ("", *(item.name for item in of.items))}
    names = {TRUTH, *(known.name for known in methods)}
    for score in given:
        if (score.set, score.image) not in images or score.method not in names:
            raise ColorFluxError(
                f"--scores: this run has no image {score.set}/{score.image} or no method"
                f" {score.method}"
            )
    for metric in {*lower} - {score.metric for score in given}:
        raise ColorFluxError(f"--lower {metric}: no --scores file has this metric")


def require_inputs(
    args: argparse.Namespace, methods: Sequence[Method], sets: Sequence[BenchmarkSet]
) -> None:
    """Raise ColorFluxError if a bundle, results or weights are missing."""
    from ..bundles.bundle_config import open_bundle
    from .benchmark.methods import require_results

    for known, (_, place) in zip(methods, args.method, strict=True):
        if place.startswith(BUNDLE):
            open_bundle(place.removeprefix(BUNDLE))
        else:
            require_results(known, sets)
    if args.features is not None and not (args.features / "config.json").is_file():
        raise ColorFluxError(
            f"--features {args.features} has no config.json: pass a model's folder"
        )
    if args.lpips is not None and not args.lpips.is_file():
        raise ColorFluxError(f"--lpips {args.lpips} is not a file")


def colorize_bundles(
    args: argparse.Namespace, methods: Sequence[Method], sets: Sequence[BenchmarkSet]
) -> None:
    """Colorize the sets with each bundle among the methods."""
    if not any(place.startswith(BUNDLE) for _, place in args.method):
        return
    quiet_libraries()
    from ..bundles.bundle import Bundle, load_bundle
    from ..bundles.bundle_config import find_bundle
    from .benchmark.colorized import colorize_sets, file_stats

    device, dtype = device_and_dtype(args, ON_GPU)

    def load(name: str) -> Bundle:
        bundle = load_bundle(name, device=device, dtype=dtype)
        bundle.pipeline.set_progress_bar_config(disable=True)
        return bundle

    for known, (_, place) in zip(methods, args.method, strict=True):
        if place.startswith(BUNDLE):
            name = place.removeprefix(BUNDLE)
            made_by = {**file_stats(find_bundle(name)), "dtype": str(dtype)}
            colorize_sets(partial(load, name), sets, known.folder, made_by)


def model_scores(
    args: argparse.Namespace, sets: Sequence[BenchmarkSet], methods: Sequence[Method]
) -> Iterator[tuple[list[Column], list[Score]]]:
    """Yield the columns and scores of --features and --lpips."""
    device, dtype = device_and_dtype(args, ON_GPU)
    cache = args.output / "features.jsonl"
    if args.features is not None:
        from .metrics.feature_metrics import feature_scores, load_encoder

        encoder = load_encoder(args.features, device, dtype)
        scores = feature_scores(sets, methods, encoder, cache)
        yield [encoder.similarity, encoder.distance], scores
    if args.lpips is not None:
        from .metrics.lpips import COLUMN, lpips_scores

        yield [COLUMN], lpips_scores(sets, methods, args.lpips, cache, device)
