"""The protocol between a training stage and the training loop.

A stage says what is random in a batch (``prepare_batch``), what its loss is (``loss``, a pure
function of the prepared batch), what a sample sheet shows (``sample``) and what artifact it leaves
(``save``). The loop does the rest, on one device or, with ``accelerate launch``, on many.
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
"""The mean loss over the batch, and metrics to log: one value per row (B,), or their mean."""


@dataclass(frozen=True)
class Sheet:
    """Samples: rows of pictures (N, 3, H, W) in [0, 1], all of one shape.

    Attributes:
        given: Rows that stay the same in every sheet, such as the photos.
        drawn: Rows drawn with the current weights.
    """

    given: list[Tensor]
    drawn: list[Tensor]


class Stage(Protocol):
    """What the loop trains."""

    @property
    def trainable(self) -> nn.Module: ...

    def prepare_batch(self, batch: Batch, generators: list[torch.Generator]) -> Batch:
        """The batch with everything random added, drawn from each row's own generator."""

    def loss(self, batch: Batch) -> Loss: ...

    def sample(self, samples: list[Picture]) -> Sheet | None:
        """Samples drawn with the current weights; None if the stage cannot draw."""

    def save(self, folder: Path) -> None:
        """Write the stage's artifact. All devices must call it; the main one writes."""


@dataclass(frozen=True)
class Columns:
    """The columns of a stage's batch that are encoded once and cached, by kind.

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
        """The manifest's column that says which photos the stage uses."""

    @property
    def columns(self) -> Columns: ...

    def blank(self, rows: int) -> Batch:
        """A prepared batch of zeros in the shapes of a real one."""


class Training(NamedTuple):
    """A stage, the rows it trains on, and the pictures shown in its sample sheets."""

    stage: Stage
    rows: Rows
    samples: list[Picture]
