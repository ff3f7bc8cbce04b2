"""How a trainer fits large models into memory; each function is one of its flags.

Frozen weights are stored in few bits (`store_frozen`) or in CPU memory (`offload_blocks`),
activations are recomputed for the gradient (`checkpoint_blocks`), and AdamW keeps its moments in 8
bits (`make_optimizer`). Gradients still pass through frozen layers to whatever is trained.
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
    """Freeze ``model`` and move it to ``device``, its weights stored as ``storage``; returns it.

    fp8 and nf4 apply to the linear layers of the `blocks`, including the norms' modulations; the
    rest is bfloat16. Products are computed in the input's dtype, or autocast's. Layers move to
    ``device`` one at a time, so that it never holds more than the result.

    Copy a ControlNet from the transformer before this, and add a LoRA after it.

    Raises ColorFluxError when nf4 is asked for without bitsandbytes.
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
    """Gradient checkpointing: keep each block's input only, and run the block again backward.

    Non-reentrant, so that a LoRA gets its gradient in a block whose inputs need none.
    """
    # No dropout, so no random state to preserve.
    again = partial(checkpoint, use_reentrant=False, preserve_rng_state=False)
    if isinstance(model, PreTrainedModel):  # Its own switch does nothing in eval mode.
        for block in blocks(model):
            block.forward = partial(again, block.forward)
    else:
        model.enable_gradient_checkpointing(again)


def offload_blocks(model: ModelMixin | PreTrainedModel, device: torch.device | str) -> None:
    """Keep frozen weights in CPU memory; each block's are copied to ``device`` when it runs.

    Turns on gradient checkpointing, without which every copy would be kept for the gradient. The
    blocks keep empty tensors on ``device`` in place of their weights, so that `.to`, peft and DDP
    see one device; their state dict is empty too. Add a LoRA before; trained weights stay put.
    """
    BlockOffloader(blocks(model), torch.device(device))
    checkpoint_blocks(model)
    model.to(device)


def compile_blocks(model: nn.Module, **options: Any) -> None:
    """torch.compile the blocks; those of one class share their code. ``options`` are its own."""
    for block in blocks(model):
        block.compile(**options)


def make_optimizer(
    name: Literal["adamw", "adamw8bit"],
    parameters: Iterable[nn.Parameter],
    learning_rate: float,
    weight_decay: float,
) -> torch.optim.Optimizer:
    """AdamW, with both moments in float32 or (bitsandbytes) in 8 bits.

    Raises ColorFluxError when adamw8bit is asked for without bitsandbytes.
    """
    options: dict[str, Any] = {"lr": learning_rate, "weight_decay": weight_decay}
    if name == "adamw8bit":
        return optional("bitsandbytes", "--optimizer adamw8bit").optim.AdamW8bit(
            parameters, **options
        )
    # Fused, it needs no room for a second copy of the weights.
    return torch.optim.AdamW(parameters, **options, fused=torch.cuda.is_available() or None)


def optional(package: str, flag: str) -> ModuleType:
    """An optional package; raises ColorFluxError, which says how to install it, without it."""
    try:
        return import_module(package)
    except ImportError as error:
        raise ColorFluxError(f"{flag} needs {package}: pip install {package}") from error
