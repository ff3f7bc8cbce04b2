"""Which rows a step trains on and what is random in them, on any number of devices."""

from __future__ import annotations

from itertools import islice, pairwise
from pathlib import Path

import pytest
import torch
from torch import Tensor

from colorflux_core.loading import load
from tests.training.runs import PAPER_STAGES
from tests.training.tiny_training import Setup
from training.data.order import MicroBatches, SampleIndex, generator, row_order
from training.data.rows import Batch

ROWS, BATCH = 7, 4
"""A pass ends in the middle of a batch."""


def batches(first: int, steps: int, seed: int = 3) -> list[list[SampleIndex]]:
    return list(islice(row_order(ROWS, BATCH, seed, first), steps))


def test_every_pass_is_a_permutation_of_its_own() -> None:
    order = [sample for batch in batches(0, 14) for sample in batch]
    assert [sample.position for sample in order] == list(range(14 * BATCH))
    passes = torch.tensor([sample.row for sample in order]).view(-1, ROWS)
    assert all(sorted(one.tolist()) == list(range(ROWS)) for one in passes)
    assert not any(torch.equal(one, other) for one, other in pairwise(passes))


def test_the_order_is_the_same_wherever_it_starts() -> None:
    whole = batches(0, 14)
    for first in range(14):
        assert batches(first, 14 - first) == whole[first:]


def test_the_seed_decides_it() -> None:
    assert batches(0, 4) == batches(0, 4)
    assert batches(0, 4) != batches(0, 4, seed=4)


@pytest.mark.parametrize(
    ("devices", "micro_batch"),
    [(1, 1), (1, 2), (1, 4), (1, 8), (2, 1), (2, 2), (2, 4), (4, 1), (4, 2), (8, 1)],
)
def test_devices_and_micro_batches_share_out_the_same_rows(devices: int, micro_batch: int) -> None:
    """Each row of a step comes once, on one device, in the order in which one device has them."""
    batch_size, steps = 8, range(3, 9)
    samplers = [
        MicroBatches(ROWS, batch_size, micro_batch, 3, steps, device, devices)
        for device in range(devices)
    ]
    parts = batch_size // micro_batch // devices
    shares = [list(sampler) for sampler in samplers]
    assert [len(sampler) for sampler in samplers] == [len(share) for share in shares]
    assert all(len(micro) == micro_batch for share in shares for micro in share)
    for index, whole in enumerate(islice(row_order(ROWS, batch_size, 3, steps.start), len(steps))):
        shared = [
            place
            for share in shares
            for micro in share[index * parts : (index + 1) * parts]
            for place in micro
        ]
        assert shared == whole


def test_places_have_generators_of_their_own() -> None:
    def draw(seed: int, place: int) -> tuple[float, ...]:
        return tuple(torch.randn(4, generator=generator(seed, place)).tolist())

    drawn = {draw(seed, place) for seed in range(4) for place in range(-50, 50)}
    assert len(drawn) == 400
    assert draw(1, 7) == draw(1, 7)


@pytest.mark.parametrize("name", PAPER_STAGES)
def test_what_is_drawn_at_a_place_depends_on_nothing_else(
    setup: Setup, tmp_path: Path, name: str
) -> None:
    """Not on the batch, the micro batch or the device: here fresh fadings, noise and timesteps."""
    fresh = {"pairs": 0} if name == "pro_dpo" else {}
    stage, rows, _ = setup.training(name, setup.config(name, tmp_path, **fresh))

    def drawn(batch_size: int, micro_batch: int, first: int, devices: int = 1) -> dict[int, Batch]:
        steps = range(first, 16 // batch_size)
        found: dict[int, Batch] = {}
        for device in range(devices):
            sampler = MicroBatches(len(rows), batch_size, micro_batch, 0, steps, device, devices)
            for micro in load(rows, workers=0, batch_sampler=sampler):
                places = micro["position"].tolist()
                batch = stage.prepare_batch(micro, [generator(0, place) for place in places])
                for index, place in enumerate(places):
                    found[place] = {name: column[index] for name, column in batch.items()}
        return found

    whole = drawn(16, 16, 0)
    assert whole.keys() == set(range(16))
    assert differ([whole[place]["noise"] for place in range(16)])
    assert differ([whole[place]["t"] for place in range(16)])
    for other in (drawn(8, 8, 0), drawn(4, 1, 0), drawn(8, 2, 1), drawn(4, 2, 0, devices=2)):
        for place, batch in other.items():
            assert batch.keys() == whole[place].keys()
            for column, tensor in batch.items():
                # The encoders of fresh losers round by the size of the batch.
                torch.testing.assert_close(tensor, whole[place][column], rtol=1e-2, atol=2e-3)
                if column in ("row", "noise", "t", "loser_pixels"):
                    assert torch.equal(tensor, whole[place][column])


def differ(tensors: list[Tensor]) -> bool:
    return len({tuple(tensor.flatten().tolist()) for tensor in tensors}) == len(tensors)


def test_fresh_losers_fade_the_same_photo_anew_in_every_pass(setup: Setup, tmp_path: Path) -> None:
    rows = setup.training("pro_dpo", setup.config("pro_dpo", tmp_path, pairs=0)).rows
    faded = [rows[SampleIndex(0, place)]["loser_pixels"] for place in range(12)]
    assert differ(faded)
    again = setup.training("pro_dpo", setup.config("pro_dpo", tmp_path, pairs=0)).rows
    assert torch.equal(again[SampleIndex(0, 5)]["loser_pixels"], faded[5])
    seeded = setup.training("pro_dpo", setup.config("pro_dpo", tmp_path, pairs=0, seed=1)).rows
    assert not torch.equal(seeded[SampleIndex(0, 5)]["loser_pixels"], faded[5])
