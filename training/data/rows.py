"""Datasets: the rows that a stage trains on, and the pixels of pictures to encode."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import Dataset

from .order import SampleIndex
from .pictures import Picture

Batch = dict[str, Tensor]
Column = Callable[[SampleIndex], Tensor]
"""One column's value for a row, such as its latents."""


class Rows(Dataset[Batch]):
    """What a stage trains on: one row per entry of ``photos``, which may repeat."""

    def __init__(self, photos: list[Path], columns: Mapping[str, Column]) -> None:
        self.photos, self.columns = photos, columns

    def __len__(self) -> int:
        return len(self.photos)

    def __getitem__(self, index: SampleIndex) -> Batch:
        """The columns, and the index itself as ``row`` and ``position``."""
        row = {name: column(index) for name, column in self.columns.items()}
        return row | {"row": torch.tensor(index.row), "position": torch.tensor(index.position)}


class Pixels(Dataset[tuple[str, Tensor]]):
    """The key and the pixels of each picture."""

    def __init__(self, pictures: list[Picture]) -> None:
        self.pictures = pictures

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, index: int) -> tuple[str, Tensor]:
        return self.pictures[index].key, self.pictures[index].pixels()
