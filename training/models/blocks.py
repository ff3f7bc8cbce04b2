"""Transformer blocks: the units of checkpointing, offloading, packing, compiling and sharding."""

from __future__ import annotations

from diffusers.models.transformers.transformer_flux import (
    FluxSingleTransformerBlock,
    FluxTransformerBlock,
)
from torch import nn
from transformers.models.siglip.modeling_siglip import SiglipEncoderLayer

BLOCK_CLASSES = (FluxTransformerBlock, FluxSingleTransformerBlock, SiglipEncoderLayer)


def blocks(model: nn.Module) -> list[nn.Module]:
    """The transformer blocks of FLUX.1, a ControlNet or SigLIP, in execution order."""
    return [module for module in model.modules() if isinstance(module, BLOCK_CLASSES)]
