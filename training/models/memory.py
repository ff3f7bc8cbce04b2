"""How a trainer keeps large models in memory; each function is one of its flags.

Frozen weights are held in few bits (`hold_frozen`) or in CPU memory (`offload_blocks`), activations
are computed again for the gradient (`checkpoint_blocks`), AdamW's moments are held in 8 bits
(`make_optimizer`). All of them keep gradients through frozen layers to whatever is trained.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from importlib import import_module
from types import ModuleType
from typing import Any, Literal

import torch
from diffusers import ModelMixin
from diffusers.models.transformers.transformer_flux import (
    FluxSingleTransformerBlock,
    FluxTransformerBlock,
)
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel
from transformers.models.siglip.modeling_siglip import SiglipEncoderLayer

from colorflux_core.errors import ColorFluxError

from .offload import send_visiting
from .packed_linear import Float8Linear, NF4Linear, PackedLinear

Held = Literal["float32", "bfloat16", "float16", "fp8", "nf4"]
PACKED: dict[str, type[PackedLinear]] = {"fp8": Float8Linear, "nf4": NF4Linear}


def blocks(model: nn.Module) -> list[nn.Module]:
    """The transformer blocks of FLUX.1, a ControlNet or SigLIP in the order in which they run."""
    kinds = (FluxTransformerBlock, FluxSingleTransformerBlock, SiglipEncoderLayer)
    return [module for module in model.modules() if isinstance(module, kinds)]


def hold_frozen(model: nn.Module, how: Held, device: torch.device | str) -> nn.Module:
    """Freeze ``model`` and put it on ``device`` in the storage that ``how`` names; returns it.

    fp8 and nf4 are for the linear layers of the `blocks`, norms' modulations included; all the rest
    is bfloat16. Their products are computed in the dtype of their input, or autocast's. Layers go
    to ``device`` one at a time, so that it never holds more than the result.

    A ControlNet that starts from this transformer must be made before, a LoRA added after.

    Raises ColorFluxError when nf4 is asked for without bitsandbytes.
    """
    cast = {"float32": model.float, "float16": model.half}.get(how, model.bfloat16)
    cast().requires_grad_(False)
    if how == "nf4":
        optional("bitsandbytes", "--frozen nf4")
    if how in PACKED:
        for block in blocks(model):
            for parent in list(block.modules()):
                for name, child in parent.named_children():
                    if isinstance(child, nn.Linear):
                        setattr(parent, name, PACKED[how](child, device))
    return model.to(device)


def checkpoint_blocks(model: ModelMixin | PreTrainedModel) -> None:
    """Keep only the input of every block for the gradient, and compute the block again for it.

    Non-reentrant: the gradient finds a LoRA in a block none of whose inputs needs one.
    """
    # There is no dropout whose random state would have to be kept.
    again = partial(checkpoint, use_reentrant=False, preserve_rng_state=False)
    if isinstance(model, PreTrainedModel):  # Its own switch does nothing in eval mode.
        for block in blocks(model):
            block.forward = partial(again, block.forward)
    else:
        model.enable_gradient_checkpointing(again)


def offload_blocks(model: ModelMixin | PreTrainedModel, device: torch.device | str) -> None:
    """Let frozen weights wait in CPU memory; block after block of them visits ``device``.

    Gradient checkpointing comes with it, since each visitor would be kept for the gradient without.
    The blocks keep empty tensors on ``device`` in the weights' places, so that `.to`, peft and DDP
    find one device; their state dict is empty too. Add a LoRA before; trained weights stay put.
    """
    send_visiting(blocks(model), torch.device(device))
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
