"""Which rows a step trains on, and what is random in them: all of it follows from seed and step.

A *place* is a row's position in the whole run, ``step * batch_size + i``. Its noise, timestep and
fading come from a generator seeded with (seed, place); so accumulation, more devices and resuming
in the middle of a pass change nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count
from typing import NamedTuple

import torch
from torch.utils.data import Sampler


class Place(NamedTuple):
    row: int
    place: int


def row_order(rows: int, batch_size: int, seed: int, first_step: int) -> Iterator[list[Place]]:
    """The batch of each step from ``first_step`` on, shuffled anew for every pass over the rows."""
    shuffled: dict[int, list[int]] = {}
    for step in count(first_step):
        batch = []
        for place in range(step * batch_size, (step + 1) * batch_size):
            passed, index = divmod(place, rows)
            if passed not in shuffled:
                order = torch.randperm(rows, generator=generator(seed, -1 - passed))
                shuffled = {passed: order.tolist()}
            batch.append(Place(shuffled[passed][index], place))
        yield batch


def generator(seed: int, place: int) -> torch.Generator:
    """The generator of everything random at one place (or, negative, in one pass)."""
    return torch.Generator().manual_seed((seed * 1_000_000_007 + place) % 2**63)


class MicroBatches(Sampler[list[Place]]):
    """One device's micro batches, steps ``first_step`` to ``steps``."""

    def __init__(
        self,
        rows: int,
        batch_size: int,
        micro_batch: int,
        seed: int,
        steps: range,
        device: int = 0,
        devices: int = 1,
    ) -> None:
        self.order = (rows, batch_size, seed, steps.start)
        self.steps, self.micro_batch = steps, micro_batch
        self.share = range(
            device * batch_size // devices, (device + 1) * batch_size // devices, micro_batch
        )

    def __len__(self) -> int:
        return len(self.steps) * len(self.share)

    def __iter__(self) -> Iterator[list[Place]]:
        for _, batch in zip(self.steps, row_order(*self.order), strict=False):
            for start in self.share:
                yield batch[start : start + self.micro_batch]
