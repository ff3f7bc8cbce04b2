"""``python -m tests.kill_folders --kills 50``: folder runs that are killed again and again.

Runs of ``colorize`` and ``restore`` on tiny models are killed (SIGKILL) at random moments, every
other time in the middle of a write, and started again. In the end each photo has its one result,
complete and the same as that of a run left alone, and nothing else is left in the folder.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import random
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from colorflux_core import colorize, restore
from colorflux_core.bundles.bundle import save_bundle
from colorflux_core.model.settings import Settings
from colorflux_core.photos.canvas import Canvas
from colorflux_core.photos.photo import load_photo
from tests.nano_models import tiny_pipeline
from tests.s3diff import models as s3diff_models

PHOTOS = 8
SIZES = {"colorize": (300, 400), "restore": (60, 80)}
"""Of the photos: large enough that writing takes a while, and that S3Diff takes little."""
COMMANDS = tuple(SIZES)


def make_photos(folder: Path, size: tuple[int, int]) -> None:
    """Photos of all formats."""
    rng = np.random.default_rng(0)
    for number in range(PHOTOS):
        suffix = ("png", "tif", "jpg", "webp")[number % 4]
        path = folder / ("sub" if number % 3 == 0 else "") / f"{number}.{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, size, np.uint8)).save(path)


def make_command(folder: Path, command: str) -> tuple[Callable[[Sequence[str]], int], list[str]]:
    """The command's main function, and the arguments that name its models."""
    if command == "colorize":
        settings = Settings(canvas=Canvas("aspect", 32), steps=1, text_tokens=3)
        save_bundle(folder / "bundle", tiny_pipeline(), settings)
        return colorize.main, [f"--bundle={folder / 'bundle'}"]
    s3diff_models.save_sd_turbo(folder / "sd-turbo")
    s3diff_models.save_converted(folder)
    models = [f"--s3diff={folder / 's3diff.safetensors'}", f"--sd-turbo={folder / 'sd-turbo'}"]
    return restore.main, [*models, "--tile=256"]


def run(main: Callable[[Sequence[str]], int], words: Sequence[str]) -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    sys.exit(main(words))


def start(main: Callable[[Sequence[str]], int], words: Sequence[str]) -> BaseProcess:
    process = multiprocessing.get_context("fork").Process(target=run, args=(main, words))
    process.start()
    return process


def files(folder: Path) -> dict[str, Path]:
    return {str(p.relative_to(folder)): p for p in folder.rglob("*") if p.is_file()}


def faults(results: Path, alone: Path) -> list[str]:
    """What is wrong with a folder of results, complete or not."""
    found = []
    for name, path in files(results).items():
        if name.endswith(".part"):
            continue
        expected = files(alone).get(name)
        if expected is None:
            found.append(f"{name} is no result")
        elif not torch.equal(load_photo(path).pixels, load_photo(expected).pixels):
            found.append(f"{name} differs")
    return found


def kill_runs(folder: Path, command: str, kills: int, rng: random.Random) -> tuple[int, list[str]]:
    """How many kills hit a write, and what went wrong."""
    folder.mkdir()
    photos, alone = folder / "in", folder / "alone"
    make_photos(photos, SIZES[command])
    main, models = make_command(folder, command)
    began = time.monotonic()
    process = start(main, [str(photos), "-o", str(alone), *models])
    process.join()
    duration = time.monotonic() - began
    wrong = [] if process.exitcode == 0 else [f"the run alone ended with {process.exitcode}"]
    in_writes, done, rounds = 0, 0, 0
    while done < kills:
        rounds += 1
        results = folder / f"out{rounds}"
        words = [str(photos), "-o", str(results), *models]
        while done < kills and len(files(results)) < PHOTOS:
            process = start(main, words)
            time.sleep(rng.uniform(0, duration / 2))
            while done % 2 and process.is_alive() and not [*results.rglob(".*.part")]:
                pass
            process.kill()
            process.join()
            done += process.exitcode != 0
            in_writes += bool([*results.rglob(".*.part")])
            wrong += faults(results, alone)
        process = start(main, words)
        process.join()
        wrong += faults(results, alone)
        if process.exitcode or files(results).keys() != files(alone).keys():
            left = sorted(files(results).keys() ^ files(alone).keys())
            wrong.append(f"round {rounds} ended with {process.exitcode}: lost or left {left}")
    return in_writes, wrong


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(1)
    failed = False
    for command in COMMANDS:
        with tempfile.TemporaryDirectory() as name:
            rng = random.Random(args.seed)
            in_writes, wrong = kill_runs(Path(name) / command, command, args.kills, rng)
        what = "; ".join(wrong) or "0 lost, 0 doubled, 0 incomplete, nothing left behind"
        print(f"{command}: {args.kills} kills, {in_writes} of them in a write: {what}")
        failed |= bool(wrong)
    sys.exit(failed)


if __name__ == "__main__":
    main()
