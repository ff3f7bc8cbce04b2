"""The state of a run: weights and their EMA, optimizer, learning-rate schedule, recent losses."""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path

import torch
from accelerate import Accelerator
from diffusers.optimization import get_scheduler
from diffusers.training_utils import EMAModel
from torch import nn
from torch.utils._pytree import tree_map_only

from colorflux_core.digest import digest
from colorflux_core.errors import ColorFluxError

from ..config import LoopConfig
from ..data.rows import Rows
from ..models.memory import make_optimizer
from ..models.parallel import gather_to_main, shard_like
from .checkpoint import State, newest_name, require_same_settings

RECENT = 100
"""Number of recent steps over which the mean loss is taken to detect an exploding loss."""


class RunState:
    """Everything that changes during training. Create it once the model is on its devices."""

    def __init__(
        self,
        trainable: nn.Module,
        rows: Rows,
        config: LoopConfig,
        steps: int,
        accelerator: Accelerator,
    ) -> None:
        self.config = config
        self.weights = {n: p for n, p in trainable.named_parameters() if p.requires_grad}
        self.parameters = list(self.weights.values())
        self.optimizer = accelerator.prepare(
            make_optimizer(
                config.optimizer, self.parameters, config.learning_rate, config.weight_decay
            )
        )
        self.schedule = get_scheduler(
            config.schedule,
            self.optimizer,
            num_warmup_steps=config.warmup_steps,
            num_training_steps=steps,
        )
        self.ema = EMAModel(self.parameters, decay=config.ema_decay) if config.ema_decay else None
        self.scaler = accelerator.scaler
        self.losses: deque[float] = deque(maxlen=RECENT)
        self.settings = settings(config) | {
            "manifest": digest(*(photo.name.encode() for photo in rows.photos))
        }

    def step(self) -> None:
        """Take an optimizer step with the accumulated gradients, and update schedule and EMA."""
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.schedule.step()
        if self.ema:
            self.ema.step(self.parameters)

    def require_sound(self, metrics: dict[str, float], step: int, photos: list[Path]) -> None:
        """Check loss and gradient before the optimizer step, which could damage the weights.

        Raises ColorFluxError, which names the batch's photos, if the loss or the gradient norm is
        not finite, or if the loss is far above its recent mean.
        """
        loss, norm = metrics["loss"], metrics["grad_norm"]
        mean_loss = statistics.fmean(self.losses) if len(self.losses) >= RECENT else math.inf
        ratio = self.config.max_loss_ratio
        if not math.isfinite(loss):
            problem = f"the loss is {loss}"
        elif not (math.isfinite(norm) or self.scaler):  # With fp16, the scaler skips such a step.
            problem = f"the gradient norm is {norm}"
        elif ratio and abs(loss) > ratio * abs(mean_loss):
            problem = (
                f"the loss is {loss:.3g}, more than {ratio:g} times its recent mean"
                " (--max-loss-ratio)"
            )
        else:
            self.losses.append(loss)
            return
        names = ", ".join(sorted({photo.name for photo in photos}))
        raise ColorFluxError(
            f"{problem} at step {step} on {names}; last good checkpoint:"
            f" {newest_name(self.config.output)}. Check these photos, or start a new run with a"
            " lower --learning-rate"
        )

    @contextmanager
    def ema_weights(self) -> Iterator[None]:
        """Context in which the weights are replaced by their EMA, if the run has one."""
        if self.ema is None:
            yield
            return
        self.ema.store(self.parameters)
        self.ema.copy_to(self.parameters)
        try:
            yield
        finally:
            self.ema.restore(self.parameters)

    def state(self, step: int) -> State:
        """The complete state, on the CPU of the main process. All processes must call it."""
        state = {
            "step": step,
            "settings": self.settings,
            "weights": self.weights,
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "ema": self.ema.state_dict() if self.ema else None,
            "scaler": self.scaler.state_dict() if self.scaler else None,
            "losses": list(self.losses),
        }
        return tree_map_only(torch.Tensor, gather_to_main, state)

    @torch.no_grad()
    def restore(self, state: State) -> int:
        """Restore a result of :meth:`state` and return the number of completed steps.

        Raises ColorFluxError, which names the setting, if the run had other settings.
        """
        require_same_settings(state["settings"], self.settings)
        for name, weight in self.weights.items():
            weight.copy_(shard_like(state["weights"][name], weight))
        for index, weight in enumerate(self.parameters):
            for name, value in state["optimizer"]["state"].get(index, {}).items():
                if isinstance(value, torch.Tensor) and value.shape == weight.shape:
                    state["optimizer"]["state"][index][name] = shard_like(value, weight)
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        if self.ema:
            averages = zip(state["ema"]["shadow_params"], self.parameters, strict=True)
            state["ema"]["shadow_params"] = [shard_like(*pair) for pair in averages]
            self.ema.load_state_dict(state["ema"])
        if self.scaler and state["scaler"]:
            self.scaler.load_state_dict(state["scaler"])
        self.losses.extend(state["losses"])
        return int(state["step"])


def settings(config: LoopConfig) -> State:
    """The settings that must not change when a run is resumed."""
    return {
        field.name: str(value) if isinstance(value, Path) else value
        for field in fields(config)
        if not field.metadata["may_change"]
        for value in [getattr(config, field.name)]
    }
