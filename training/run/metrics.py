"""The metrics of every step, written to ``metrics.jsonl`` and a tracker.

Depending on the stage, these are ``flow_loss``, ``distillation_loss``, ``dpo_loss``,
``implicit_accuracy``, ``margin``, ``logit``, ``winner_error`` and ``loser_error``. The loop adds
``loss``, ``flow_loss_t/<from>-<to>`` (flow loss of the rows whose timestep is in that range),
``grad_norm``, ``learning_rate``, ``images_per_s`` and ``peak_memory`` (MiB).
"""

from __future__ import annotations

import json
import resource
import sys
from collections.abc import Mapping
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor

BUCKETS = 5
"""Number of timestep ranges in [0, 1] with separate averages."""


class MetricMeter:
    """Averages metrics over the rows of all micro-batches and devices of a step."""

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}
        """(sum, count) by name."""

    def add(self, name: str, values: Tensor, rows: int) -> None:
        """Add one value per row, (rows,), or the mean over ``rows`` rows as a scalar."""
        values = values.detach().double()
        total = values.sum() if values.ndim else values * rows
        added = torch.stack([total, torch.full_like(total, rows)])
        self.sums[name] = self.sums[name] + added if name in self.sums else added

    def add_by_timestep(self, name: str, values: Tensor, t: Tensor) -> None:
        """Add values (rows,) to the averages of their timesteps' ranges; t (rows,) in [0, 1]."""
        bucket = (t * BUCKETS).long().clamp(max=BUCKETS - 1)
        for index in range(BUCKETS):
            selected = values[bucket == index]
            low, high = index / BUCKETS, (index + 1) / BUCKETS
            self.add(f"{name}_t/{low:.1f}-{high:.1f}", selected, len(selected))

    def over_devices(self, accelerator: Accelerator) -> dict[str, float]:
        """The averages over all devices; metrics without a row are omitted."""
        sums = accelerator.reduce(torch.stack(list(self.sums.values())))
        return {
            name: (total / count).item()
            for name, (total, count) in zip(self.sums, sums.cpu(), strict=True)
            if count
        }


def peak_memory(device: torch.device) -> float:
    """Peak memory so far in MiB: of the GPU, or of the process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    unit = 1 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20


def log_line(path: Path, step: int, metrics: Mapping[str, float]) -> None:
    """Append a step's metrics to a JSON Lines file, rounded to 6 significant digits."""
    line = {"step": step} | {name: float(f"{value:.6g}") for name, value in metrics.items()}
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


def truncate_log(path: Path, first_step: int) -> None:
    """Drop lines from ``first_step`` on, and an incomplete last line, when a run is resumed."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    complete = [line for line in lines if line.endswith("}")]
    kept = [line for line in complete if json.loads(line)["step"] < first_step]
    path.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")
