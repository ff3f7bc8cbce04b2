"""Datasets read by worker processes."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from typing import Any

from torch.utils.data import DataLoader, Dataset

from .errors import ColorFluxError


def load(
    dataset: Dataset[Any],
    workers: int,
    *,
    on_start: Callable[[], None] | None = None,
    **options: Any,
) -> Iterator[Any]:
    """The dataset's batches in order, read by ``workers`` processes; 0 reads in this one.

    Args:
        dataset: The samples.
        workers: Number of processes.
        on_start: Called first in each worker.
        options: DataLoader's own.

    Raises:
        ColorFluxError: as the dataset does, and when a worker is killed.
    """
    fault = ""
    try:
        yield from DataLoader(
            dataset, num_workers=workers, worker_init_fn=_WorkerStart(on_start), **options
        )
    except ColorFluxError as error:  # From a worker, its text includes a traceback.
        fault = str(error).strip().rpartition("ColorFluxError: ")[2]
        error.__traceback__ = None  # It would keep the workers alive.
    except RuntimeError as error:
        if "DataLoader worker (pid" not in str(error):
            raise
        raise ColorFluxError(
            f"a worker process was killed, perhaps for lack of memory: reduce --workers ({workers})"
        ) from error
    if fault:
        raise ColorFluxError(fault)


class _WorkerStart:
    """Leaves signals to the main process. A class, so that it can be pickled for spawn.

    Ctrl-C goes to the whole process group, so the worker leaves it; SIGTERM is how a DataLoader
    ends its workers.
    """

    def __init__(self, then: Callable[[], None] | None) -> None:
        self.then = then

    def __call__(self, worker: int) -> None:
        if hasattr(os, "setsid"):
            os.setsid()
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        if self.then is not None:
            self.then()
