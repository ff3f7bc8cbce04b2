"""The smallest stage, for what the loop does with any of them: y = 2 x, by least squares."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from training.config import LoopConfig
from training.data.order import SampleIndex
from training.data.pictures import Picture
from training.data.rows import Batch, Column, Rows
from training.run.loop import train
from training.stage import Loss, Sheet, Training

PHOTOS = [Path(f"{row}.png") for row in range(8)]
X = torch.linspace(-1, 1, len(PHOTOS))


class Line:
    """(w x + b - y)^2 with noise on y, times the row's ``scale``, plus the square root of ``kink``.

    The root's gradient at 0 is not finite, while its value is; elsewhere it is constant.
    """

    def __init__(self) -> None:
        self.trainable = nn.Linear(1, 1)
        with torch.no_grad():
            for parameter in self.trainable.parameters():
                parameter.zero_()

    def prepare_batch(self, batch: Batch, generators: list[torch.Generator]) -> Batch:
        noise = torch.cat([torch.randn(1, generator=generator) for generator in generators])
        return batch | {"y": 2 * batch["x"] + 0.1 * noise}

    def loss(self, batch: Batch) -> Loss:
        error = (self.trainable(batch["x"][:, None])[:, 0] - batch["y"]).square()
        root = (self.trainable.bias * 0 + batch["kink"]).sqrt()
        return (batch["scale"] * error + root - batch["kink"].sqrt()).mean(), {"error": error}

    def sample(self, samples: list[Picture]) -> Sheet | None:
        return None

    def save(self, folder: Path) -> None:
        save_file(self.trainable.state_dict(), folder / "line.safetensors")


def line_training(**columns: Column) -> Training:
    """``columns`` are other scales or kinks than 1."""
    given: dict[str, Column] = {"x": lambda index: X[index.row], "scale": one, "kink": one}
    return Training(Line(), Rows(PHOTOS, given | columns), [])


def one(index: SampleIndex) -> Tensor:
    return torch.tensor(1.0)


def line_run(output: Path, training: Training | None = None, **changes: Any) -> None:
    train(training or line_training(), line_config(output, **changes))


def line_config(output: Path, **changes: Any) -> LoopConfig:
    common: dict[str, Any] = {
        "output": output,
        "batch_size": 4,
        "steps": 4,
        "learning_rate": 0.1,
        "workers": 0,
        "precision": "no",
        "tracker": "none",
    }
    return LoopConfig(**common | changes)
