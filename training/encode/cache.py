"""A disk cache of encoded pictures: tensors by key, in safetensors shards written atomically."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm

from colorflux_core.digest import digest
from colorflux_core.errors import ColorFluxError
from colorflux_core.files import atomic_write
from colorflux_core.loading import load
from colorflux_core.photos.color import unit_range

from ..data.pictures import Picture
from ..data.rows import Pixels
from ..models.parallel import devices

ENCODE_BATCH = 16
SHARD = 512
"""Rows per shard; an interrupted encoding loses at most this many rows per device."""

Encode = Callable[[Tensor], Tensor]
"""Maps pictures (B, 3, S, S) in [0, 1] on the device to one row each, (B, ...)."""


class TensorCache:
    """Tensors by key, in the safetensors files of one folder, indexed by the files' headers."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.index: dict[str, Path] = {}
        self.refresh()

    def refresh(self) -> None:
        """Index shards written by other processes. Raises ColorFluxError if one is damaged."""
        known = set(self.index.values())
        for shard in sorted(self.folder.glob("*.safetensors")):
            if shard not in known:
                self.index |= dict.fromkeys(open_shard(shard).keys(), shard)

    def __contains__(self, key: str) -> bool:
        return key in self.index

    def __getitem__(self, key: str) -> Tensor:
        return open_shard(self.index[key]).get_tensor(key)

    def add(self, rows: Mapping[str, Tensor]) -> None:
        """Write a new shard. Raises ColorFluxError if the folder cannot be written."""
        shard = self.folder / f"{digest(*(key.encode() for key in rows))}.safetensors"
        fix = "make room or choose another --cache"
        with atomic_write(shard, fix=fix, make_folder=True) as unfinished:
            save_file(dict(rows), unfinished)
        self.index |= dict.fromkeys(rows, shard)


@functools.cache
def open_shard(shard: Path) -> safe_open:
    """An open handle on a shard. Raises ColorFluxError if the shard is damaged."""
    try:
        return safe_open(shard, "pt")
    except (OSError, SafetensorError) as error:
        raise ColorFluxError(
            f"{shard} is damaged ({error}): delete it, and it will be encoded again"
        ) from error


def encode_missing(
    cache: TensorCache, pictures: Iterable[Picture], make_encode: Callable[[], Encode], workers: int
) -> None:
    """Encode the pictures missing from ``cache``, divided among the devices.

    ``make_encode`` loads the encoder; it is called only if a picture is missing.
    """
    state = devices()
    state.wait_for_everyone()  # Every process must see the same index before one writes.
    missing = [p for p in {p.key: p for p in pictures}.values() if p.key not in cache]
    if missing:
        share = missing[state.process_index :: state.num_processes]
        encode_pictures(cache, share, make_encode(), workers)
        state.wait_for_everyone()
        cache.refresh()


@torch.no_grad()
def encode_pictures(
    cache: TensorCache, pictures: list[Picture], encode: Encode, workers: int
) -> None:
    """Encode ``pictures`` on this device and add them to ``cache``, SHARD rows at a time."""
    state = devices()
    rows: dict[str, Tensor] = {}
    label = f"encoding {cache.folder.name.partition('-')[0]}"
    with tqdm(total=len(pictures), desc=label, disable=not state.is_main_process) as progress:
        for keys, batch in load(Pixels(pictures), workers, batch_size=ENCODE_BATCH):
            encoded = encode(unit_range(batch.to(state.device))).cpu()
            rows |= {key: row.clone() for key, row in zip(keys, encoded, strict=True)}
            progress.update(len(keys))
            if len(rows) >= SHARD:
                cache.add(rows)
                rows = {}
    if rows:
        cache.add(rows)
