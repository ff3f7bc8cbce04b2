"""What a trainer's command does: plan or train, and end in one line when something goes wrong."""

from __future__ import annotations

import logging
import signal
import sys
from collections.abc import Callable
from typing import TypeVar

import torch

from colorflux_core.cli.command_line import quiet_libraries
from colorflux_core.errors import ColorFluxError

from .models.parallel import devices
from .models.parts import Parts, PartsConfig
from .plan.plan import print_plan
from .run.loop import train
from .stage import PlannedStage, Training

StageConfig = TypeVar("StageConfig", bound=PartsConfig)


def plan_or_train(
    config: StageConfig,
    make_stage: Callable[[StageConfig, Parts], PlannedStage],
    make_training: Callable[[StageConfig], Training],
) -> None:
    """Print the plan if ``--plan`` is given, else train."""
    if config.plan:
        print_plan(config, make_stage)
    else:
        train(make_training(config), config)
        devices().destroy_process_group()


def run_command(main: Callable[[list[str]], None]) -> None:
    """Run ``main`` with the command line; user errors and interruption end in one line."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    quiet_libraries()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        main(sys.argv[1:])
    except ColorFluxError as error:
        sys.exit(f"error: {' '.join(str(error).split())}")
    except torch.cuda.OutOfMemoryError as error:
        reason = str(error).partition(". ")[0]
        sys.exit(f"error: {reason}: give a smaller --micro_batch; --plan says what else helps")
    except KeyboardInterrupt as stop:
        print(str(stop) or "stopped; the same command goes on from here", file=sys.stderr)
        sys.exit(130)
