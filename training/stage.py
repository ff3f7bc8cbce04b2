"""The protocol between a training stage and the training loop.

A stage draws everything random in a batch (``prepare_batch``), computes the loss as a pure function
of the prepared batch (``loss``), draws samples (``sample``) and writes the trained weights
(``save``). The loop does the rest, on one device or, with ``accelerate launch``, on several.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn

from .data.pictures import Picture
from .data.rows import Batch, Rows

Loss = tuple[Tensor, dict[str, Tensor]]
"""The mean loss over the batch, and metrics to log: values per row (B,), or their mean."""


@dataclass(frozen=True)
class Sheet:
    """Samples: rows of pictures (N, 3, H, W) in [0, 1], all of the same shape.

    Attributes:
        given: Rows that are the same in every sheet, such as the photos.
        drawn: Rows drawn with the current weights.
    """

    given: list[Tensor]
    drawn: list[Tensor]


class Stage(Protocol):
    """What the training loop needs from a stage."""

    @property
    def trainable(self) -> nn.Module:
        """The module whose parameters with ``requires_grad`` are trained."""

    def prepare_batch(self, batch: Batch, generators: list[torch.Generator]) -> Batch:
        """Add all random columns to the batch, each row's drawn from its own generator."""

    def loss(self, batch: Batch) -> Loss:
        """The loss of a prepared batch; deterministic."""

    def sample(self, samples: list[Picture]) -> Sheet | None:
        """Samples drawn with the current weights; None if the stage cannot draw any."""

    def save(self, folder: Path) -> None:
        """Write the trained weights. All processes must call it; the main one writes."""


@dataclass(frozen=True)
class Columns:
    """The names of a stage's batch columns that are encoded once and cached.

    Attributes:
        latents: Packed latents (B, L, 64).
        tokens: Image tokens (B, T, D).
    """

    latents: tuple[str, ...] = ()
    tokens: tuple[str, ...] = ()


class PlannedStage(Stage, Protocol):
    """A stage that ``--plan`` can measure."""

    @property
    def name(self) -> str:
        """The name of the stage and of its column in the manifest."""

    @property
    def columns(self) -> Columns:
        """The cached columns of its batch."""

    def blank(self, rows: int) -> Batch:
        """A prepared batch of zeros in the shapes of a real one."""


class Training(NamedTuple):
    """A stage, the rows it trains on, and the pictures shown in its sample sheets."""

    stage: Stage
    rows: Rows
    samples: list[Picture]
