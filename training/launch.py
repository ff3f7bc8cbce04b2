"""What a training command does: plan or train; errors are one line and an exit status."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn, TypeVar

import torch

from colorflux_core.cli.command_line import DONE, exit_status, quiet_libraries, run_program
from colorflux_core.errors import ColorFluxError

from .models.parallel import devices
from .models.parts import Parts, PartsConfig
from .plan.plan import print_plan
from .run.loop import require_startable, train
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
        require_startable(config)
        train(make_training(config), config)
        devices().destroy_process_group()


def run_command(main: Callable[[list[str]], None]) -> NoReturn:
    """Run ``main`` with the command line, and exit with the status that all commands share.

    Every error is one line on stderr: see :func:`colorflux_core.cli.command_line.exit_status`.
    """

    def command() -> int:
        quiet_libraries()
        try:
            main(sys.argv[1:])
        except torch.cuda.OutOfMemoryError as error:
            reason = str(error).partition(". ")[0]
            raise ColorFluxError(
                f"{reason}: use a smaller --micro-batch; --plan shows what else helps"
            ) from error
        return DONE

    logging.basicConfig(level=logging.INFO, format="%(message)s")
    prog = Path(sys.argv[0]).stem
    run_program(lambda: exit_status(prog, command, extra="train"))
