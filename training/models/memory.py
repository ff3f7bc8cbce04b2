"""Memory savings, one function per flag.

Frozen weights are stored in a smaller format (`store_frozen`) or in CPU memory (`offload_blocks`),
activations are recomputed in the backward pass (`checkpoint_blocks`), and AdamW keeps its moments
in 8 bits (`make_optimizer`). Gradients still flow through frozen layers to the trained weights.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from importlib import import_module
from types import ModuleType
from typing import Any, Literal

import torch
from diffusers import ModelMixin
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from colorflux_core.errors import ColorFluxError

from .blocks import blocks
from .offload import BlockOffloader
from .packed_linear import Float8Linear, NF4Linear, PackedLinear

WeightStorage = Literal["float32", "bfloat16", "float16", "fp8", "nf4"]
PACKED: dict[str, type[PackedLinear]] = {"fp8": Float8Linear, "nf4": NF4Linear}


def store_frozen(model: nn.Module, storage: WeightStorage, device: torch.device | str) -> nn.Module:
    """Freeze ``model``, convert its weights to ``storage``, move it to ``device`` and return it.

    fp8 and nf4 apply to the linear layers of the `blocks`, including the norms' modulations; other
    weights become bfloat16. Matrix products are computed in the input's dtype, or autocast's.
    Layers are packed and moved one at a time, so that the device never holds more than the result.

    Copy a ControlNet from the transformer before calling this, and add a LoRA afterwards.

    Raises ColorFluxError if ``storage`` is nf4 and bitsandbytes is not installed.
    """
    cast = {"float32": model.float, "float16": model.half}.get(storage, model.bfloat16)
    cast().requires_grad_(False)
    if storage == "nf4":
        optional("bitsandbytes", "--frozen nf4")
    if storage in PACKED:
        for block in blocks(model):
            for parent in list(block.modules()):
                for name, child in parent.named_children():
                    if isinstance(child, nn.Linear):
                        setattr(parent, name, PACKED[storage](child, device))
    return model.to(device)


def checkpoint_blocks(model: ModelMixin | PreTrainedModel) -> None:
    """Gradient checkpointing: save only each block's input and recompute the block in backward.

    Non-reentrant, so that a LoRA gets gradients even in a block whose inputs require none.
    """
    # The models have no dropout, so there is no random state to preserve.
    recompute = partial(checkpoint, use_reentrant=False, preserve_rng_state=False)
    if isinstance(model, PreTrainedModel):  # transformers' own switch has no effect in eval mode.
        for block in blocks(model):
            block.forward = partial(recompute, block.forward)
    else:
        model.enable_gradient_checkpointing(recompute)


def offload_blocks(model: ModelMixin | PreTrainedModel, device: torch.device | str) -> None:
    """Keep the blocks' frozen weights in CPU memory and copy them to ``device`` block by block.

    Enables gradient checkpointing; otherwise autograd would keep every copy. On ``device`` the
    frozen weights are replaced by empty tensors, so that `.to`, peft and DDP see a single device;
    the state dict therefore contains empty tensors too. Trained weights stay on ``device``: add a
    LoRA before calling this.
    """
    BlockOffloader(blocks(model), torch.device(device))
    checkpoint_blocks(model)
    model.to(device)


def compile_blocks(model: nn.Module, **options: Any) -> None:
    """torch.compile each block; blocks of one class share the code. ``options`` go to compile."""
    for block in blocks(model):
        block.compile(**options)


def make_optimizer(
    name: Literal["adamw", "adamw8bit"],
    parameters: Iterable[nn.Parameter],
    learning_rate: float,
    weight_decay: float,
) -> torch.optim.Optimizer:
    """AdamW with its two moments in float32, or in 8 bits (bitsandbytes).

    Raises ColorFluxError if ``name`` is adamw8bit and bitsandbytes is not installed.
    """
    options: dict[str, Any] = {"lr": learning_rate, "weight_decay": weight_decay}
    if name == "adamw8bit":
        return optional("bitsandbytes", "--optimizer adamw8bit").optim.AdamW8bit(
            parameters, **options
        )
    # The fused kernel allocates no temporary copy of the weights.
    return torch.optim.AdamW(parameters, **options, fused=torch.cuda.is_available() or None)


def optional(package: str, flag: str) -> ModuleType:
    """Import an optional package. Raises ColorFluxError with the pip command if it is missing."""
    try:
        return import_module(package)
    except ImportError as error:
        raise ColorFluxError(f"{flag} needs {package}: pip install {package}") from error
