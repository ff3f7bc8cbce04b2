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
"""Returns a column's value for a row, such as its latents."""


class Rows(Dataset[Batch]):
    """A stage's training rows: one per entry of ``photos``, which may contain repetitions."""

    def __init__(self, photos: list[Path], columns: Mapping[str, Column]) -> None:
        self.photos, self.columns = photos, columns

    def __len__(self) -> int:
        return len(self.photos)

    def __getitem__(self, index: SampleIndex) -> Batch:
        """The columns' values, plus the index as ``row`` and ``position``."""
        row = {name: column(index) for name, column in self.columns.items()}
        return row | {"row": torch.tensor(index.row), "position": torch.tensor(index.position)}


class Pixels(Dataset[tuple[str, Tensor]]):
    """Each picture's cache key and pixels, uint8 (3, S, S)."""

    def __init__(self, pictures: list[Picture]) -> None:
        self.pictures = pictures

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, index: int) -> tuple[str, Tensor]:
        return self.pictures[index].key, self.pictures[index].pixels()
