"""``python -m tests.kill --kills 50``: a run that is killed again and again ends bit-identical.

A tiny run that saves in every step is killed (SIGKILL) at random moments, every other time in the
next save from there, and resumed each time. Its last checkpoint and its artifact must equal, bit
for bit, those of the same run left alone.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import random
import sys
import tempfile
import time
from multiprocessing.process import BaseProcess
from pathlib import Path

import torch
from torch.utils._pytree import tree_leaves

from tests.training.tiny_training import STAGES, Setup, make_setup
from training.run.checkpoint import checkpoints
from training.run.loop import train

STEPS_PER_KILL = 15


def run(setup: Setup, stage: str, output: Path, steps: int) -> None:
    """One process's part of the run, with nothing to be seen of it."""
    quiet = os.open(os.devnull, os.O_WRONLY)
    os.dup2(quiet, 2)
    config = setup.config(
        stage, output, steps=steps, checkpoint_every=1, ema_decay=0.9, resume=True
    )
    train(setup.training(stage, config), config)


def start(*args: object) -> BaseProcess:
    process = multiprocessing.get_context("fork").Process(target=run, args=args)
    process.start()
    return process


def finished(process: BaseProcess) -> None:
    process.join()
    if process.exitcode:
        sys.exit(f"the run ended with {process.exitcode}")


def newest_step(output: Path) -> int:
    return max((int(path.stem.removeprefix("step-")) for path in checkpoints(output)), default=0)


def same_end(one: Path, other: Path) -> bool:
    """Whether the newest checkpoints hold the same bits, and the artifacts the same bytes."""
    states = [torch.load(checkpoints(run)[0], weights_only=True) for run in (one, other)]
    numbers = [
        [leaf for leaf in tree_leaves(state) if isinstance(leaf, torch.Tensor | int | float)]
        for state in states
    ]
    artifacts = [
        {str(file.relative_to(run)): file.read_bytes() for file in run.rglob("*.safetensors")}
        for run in (one, other)
    ]
    try:
        torch.testing.assert_close(*numbers, rtol=0, atol=0)
    except AssertionError:
        return False
    return bool(numbers[0]) and artifacts[0] == artifacts[1]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--stage", choices=STAGES, default="basic_color")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    rng, steps = random.Random(args.seed), STEPS_PER_KILL * args.kills
    torch.set_num_threads(1)

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        setup = make_setup(folder / "setup")
        began = time.monotonic()
        finished(start(setup, args.stage, folder / "alone", steps))
        step_time = (time.monotonic() - began) / steps

        killed, kills, in_saves = folder / "killed", 0, 0
        while kills < args.kills and newest_step(killed) < steps - STEPS_PER_KILL:
            before = newest_step(killed)
            process = start(setup, args.stage, killed, steps)
            while process.is_alive() and newest_step(killed) == before:
                time.sleep(step_time / 10)
            time.sleep(rng.uniform(0, 2 * STEPS_PER_KILL / 3 * step_time))
            saving = killed / "checkpoints"
            while kills % 2 and process.is_alive() and not [*saving.glob("*.part")]:
                pass
            process.kill()
            process.join()
            kills += 1
            in_saves += bool([*saving.glob("*.part")])
        resumed_from = newest_step(killed)
        finished(start(setup, args.stage, killed, steps))

        same = same_end(folder / "alone", killed)
        print(
            f"{args.stage}: {kills} kills in {steps} steps, {in_saves} of them in a save, the last"
            f" at step {resumed_from}: {'bit-identical' if same else 'DIFFERENT'}"
        )
        sys.exit(0 if same and kills == args.kills else 1)


if __name__ == "__main__":
    main()
