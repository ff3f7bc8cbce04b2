"""One model on one or several devices: DDP through accelerate, or FSDP2."""

from __future__ import annotations

from typing import Any

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import parse_flag_from_env
from diffusers import ModelMixin
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel
from transformers import PreTrainedModel

from ..data.rows import Batch
from ..stage import Loss, Stage
from .blocks import BLOCK_CLASSES


def devices() -> PartialState:
    """The training processes and this one's device: an accelerator if available, else the CPU."""
    on_cpu = parse_flag_from_env("ACCELERATE_USE_CPU") or not torch.accelerator.is_available()
    return PartialState(cpu=on_cpu)


class LossModule(nn.Module):
    """A stage's loss as a module's forward pass, as DDP and FSDP require."""

    def __init__(self, stage: Stage) -> None:
        super().__init__()
        self.trainable = stage.trainable
        self.loss = stage.loss

    def forward(self, batch: Batch) -> Loss:
        return self.loss(batch)


def parallel(stage: Stage, accelerator: Accelerator, shard: bool) -> nn.Module:
    """Wrap the stage's loss in DDP, or in FSDP2 if ``shard``; FSDP2 shards in place."""
    module = LossModule(stage)
    if shard and accelerator.num_processes > 1:
        for part in reversed([*module.modules()]):
            if is_unit(part):
                fully_shard(part)
        fully_shard(module)
        return module
    frozen = [name for name, weight in module.named_parameters() if not weight.requires_grad]
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(module, frozen)
    return accelerator.prepare_model(module)


def is_unit(module: nn.Module) -> bool:
    """Whether FSDP gathers the module's weights as one unit: a model or a transformer block."""
    return isinstance(module, (ModelMixin, PreTrainedModel, *BLOCK_CLASSES))


def full_tensor(tensor: Tensor) -> Tensor:
    """The tensor, gathered if it is sharded. All processes must call it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def gather_to_main(tensor: Tensor) -> Any:
    """The full tensor on the CPU in the main process, None in the others."""
    complete = full_tensor(tensor)
    return complete.detach().cpu() if devices().is_main_process else None


def shard_like(full: Tensor, like: Tensor) -> Tensor:
    """``full`` on the device of ``like``, and sharded like it."""
    full = full.to(like.device)
    if isinstance(like, DTensor):
        return distribute_tensor(full, like.device_mesh, like.placements)
    return full
