"""One model on one device or on many: DDP by accelerate, or FSDP2."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

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

if TYPE_CHECKING:
    from ..run.loop import Loss, Stage


def devices() -> PartialState:
    """The devices that train: the accelerators there are, or processes on the CPU."""
    on_cpu = parse_flag_from_env("ACCELERATE_USE_CPU") or not torch.accelerator.is_available()
    return PartialState(cpu=on_cpu)


class LossModule(nn.Module):
    """A stage's loss as a forward pass, which DDP and FSDP can follow."""

    def __init__(self, stage: Stage) -> None:
        super().__init__()
        self.trainable = stage.trainable
        self.loss = stage.loss

    def forward(self, batch: Batch) -> Loss:
        return self.loss(batch)


def parallel(stage: Stage, accelerator: Accelerator, shard: bool) -> nn.Module:
    """The stage's loss on all devices. Sharding changes ``stage.trainable`` in place."""
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
    """Whether FSDP gathers its weights together: a whole model, and a block that repeats in it."""
    return isinstance(module, ModelMixin | PreTrainedModel) or type(module).__name__ in BLOCKS


BLOCKS = {"FluxTransformerBlock", "FluxSingleTransformerBlock", "SiglipEncoderLayer"}


def whole(tensor: Tensor) -> Tensor:
    """The tensor, of which each device may hold a share. All must take part."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def gathered(tensor: Tensor) -> Any:
    """The whole tensor in the main process's memory; the others keep nothing."""
    complete = whole(tensor)
    return complete.detach().cpu() if devices().is_main_process else None


def shared_like(whole: Tensor, like: Tensor) -> Tensor:
    """``whole`` on the device of ``like``, or this device's share of it."""
    whole = whole.to(like.device)
    if isinstance(like, DTensor):
        return distribute_tensor(whole, like.device_mesh, like.placements)
    return whole
