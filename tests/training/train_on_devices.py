"""The stages, stopped and resumed on several devices.

``torchrun -m tests.training.train_on_devices SETUP OUTPUT [shard]``
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from tests.training.tiny_training import Setup
from training.run.loop import train

STAGES = ("structure", "basic_color", "pro_dpo")
STEPS = 4
OPTIONS = {"batch_size": 4, "micro_batch": 1, "ema_decay": 0.5, "checkpoint_every": 2}


def train_all(setup: Setup, output: Path, shard: bool) -> None:
    for stage in STAGES:
        for steps in (STEPS // 2, STEPS):
            config = setup.config(
                stage, output / stage, steps=steps, resume=True, shard=shard, **OPTIONS
            )
            train(setup.training(stage, config), config)


if __name__ == "__main__":
    torch.set_num_threads(1)
    train_all(Setup(Path(sys.argv[1])), Path(sys.argv[2]), "shard" in sys.argv)
