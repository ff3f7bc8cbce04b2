"""The order of the rows and their random generators, both determined by seed and step alone.

A sample's *position* is its index in the run, ``step * batch_size + i``. Its noise, timestep and
fading come from a generator seeded with (seed, position). Gradient accumulation, the number of
devices and resuming in mid-epoch therefore do not change the results.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count
from typing import NamedTuple

import torch
from torch.utils.data import Sampler


class SampleIndex(NamedTuple):
    """A row of the dataset and its position in the run."""

    row: int
    position: int


def row_order(
    rows: int, batch_size: int, seed: int, first_step: int
) -> Iterator[list[SampleIndex]]:
    """Yield the batch of each step, starting at ``first_step``; rows are reshuffled every epoch."""
    shuffled: dict[int, list[int]] = {}
    for step in count(first_step):
        batch = []
        for position in range(step * batch_size, (step + 1) * batch_size):
            epoch, index = divmod(position, rows)
            if epoch not in shuffled:
                order = torch.randperm(rows, generator=generator(seed, -1 - epoch))
                shuffled = {epoch: order.tolist()}
            batch.append(SampleIndex(shuffled[epoch][index], position))
        yield batch


def generator(seed: int, position: int) -> torch.Generator:
    """The generator for a position in the run; negative positions shuffle the epochs."""
    return torch.Generator().manual_seed((seed * 1_000_000_007 + position) % 2**63)


class MicroBatches(Sampler[list[SampleIndex]]):
    """A batch sampler: one process's micro-batches for the given steps."""

    def __init__(
        self,
        rows: int,
        batch_size: int,
        micro_batch: int,
        seed: int,
        steps: range,
        process: int = 0,
        processes: int = 1,
    ) -> None:
        self.order = (rows, batch_size, seed, steps.start)
        self.steps, self.micro_batch = steps, micro_batch
        self.share = range(
            process * batch_size // processes,
            (process + 1) * batch_size // processes,
            micro_batch,
        )

    def __len__(self) -> int:
        return len(self.steps) * len(self.share)

    def __iter__(self) -> Iterator[list[SampleIndex]]:
        for _, batch in zip(self.steps, row_order(*self.order), strict=False):
            for start in self.share:
                yield batch[start : start + self.micro_batch]
