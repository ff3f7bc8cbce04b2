"""Load datasets in worker processes."""

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
    """Yield the dataset's batches in order, loaded by ``workers`` processes.

    Args:
        dataset: The samples.
        workers: Number of processes; 0 loads in this process.
        on_start: Called once at the start of each worker.
        options: Further options of DataLoader.

    Raises:
        ColorFluxError: when the dataset raises one, or a worker is killed.
    """
    fault = ""
    try:
        yield from DataLoader(
            dataset, num_workers=workers, worker_init_fn=_WorkerStart(on_start), **options
        )
    except ColorFluxError as error:  # The text includes the worker's traceback.
        fault = str(error).strip().rpartition("ColorFluxError: ")[2]
        error.__traceback__ = None  # It would keep the workers alive.
    except RuntimeError as error:
        if "DataLoader worker (pid" not in str(error):
            raise
        raise ColorFluxError(
            f"a worker process was killed, perhaps out of memory: reduce --workers ({workers})"
        ) from error
    if fault:
        raise ColorFluxError(fault)


class _WorkerStart:
    """Set up a worker so that the main process handles signals; a class, to be picklable for spawn.

    The worker leaves the process group, which receives Ctrl-C. SIGTERM keeps its default action,
    since DataLoader stops its workers with it.
    """

    def __init__(self, then: Callable[[], None] | None) -> None:
        self.then = then

    def __call__(self, worker: int) -> None:
        if hasattr(os, "setsid"):
            os.setsid()
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        if self.then is not None:
            self.then()
