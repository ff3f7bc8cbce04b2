"""What is encoded once: tensors by key on disk, in shards that are whole or not there at all."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import cache
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
"""Rows of a shard: what is lost at most when encoding is stopped."""

Encode = Callable[[Tensor], Tensor]
"""Pictures (B, 3, S, S) in [0, 1] on the device -> one row for each, (B, ...)."""


class Store:
    """Tensors by key, in the safetensors files of one folder; their headers are the index."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.index: dict[str, Path] = {}
        self.refresh()

    def refresh(self) -> None:
        """Read the index anew. Raises ColorFluxError when a shard is damaged."""
        known = set(self.index.values())
        for shard in sorted(self.folder.glob("*.safetensors")):
            if shard not in known:
                self.index |= dict.fromkeys(opened(shard).keys(), shard)

    def __contains__(self, key: str) -> bool:
        return key in self.index

    def __getitem__(self, key: str) -> Tensor:
        return opened(self.index[key]).get_tensor(key)

    def add(self, rows: Mapping[str, Tensor]) -> None:
        """Write one more shard. Raises ColorFluxError when the folder cannot be written."""
        shard = self.folder / f"{digest(*(key.encode() for key in rows))}.safetensors"
        fix = "make room or choose another --cache"
        with atomic_write(shard, fix=fix, make_folder=True) as unfinished:
            save_file(dict(rows), unfinished)
        self.index |= dict.fromkeys(rows, shard)


@cache
def opened(shard: Path) -> safe_open:
    try:
        return safe_open(shard, "pt")
    except (OSError, SafetensorError) as error:
        raise ColorFluxError(f"{shard} is damaged ({error}): delete it, it is made anew") from error


def fill(
    store: Store, pictures: Iterable[Picture], make_encode: Callable[[], Encode], workers: int
) -> None:
    """Encode the pictures that ``store`` lacks; the devices share the work.

    ``make_encode`` is called only if there is any, so that a full cache needs no encoder.
    """
    state = devices()
    state.wait_for_everyone()  # All have the same index before anyone writes.
    missing = [p for p in {p.key: p for p in pictures}.values() if p.key not in store]
    if missing:
        share = missing[state.process_index :: state.num_processes]
        encode_share(store, share, make_encode(), workers)
        state.wait_for_everyone()
        store.refresh()


@torch.no_grad()
def encode_share(store: Store, pictures: list[Picture], encode: Encode, workers: int) -> None:
    state = devices()
    rows: dict[str, Tensor] = {}
    what = f"encoding {store.folder.name.partition('-')[0]}"
    with tqdm(total=len(pictures), desc=what, disable=not state.is_main_process) as progress:
        for keys, batch in load(Pixels(pictures), workers, batch_size=ENCODE_BATCH):
            encoded = encode(unit_range(batch.to(state.device))).cpu()
            rows |= {key: row.clone() for key, row in zip(keys, encoded, strict=True)}
            progress.update(len(keys))
            if len(rows) >= SHARD:
                store.add(rows)
                rows = {}
    if rows:
        store.add(rows)
