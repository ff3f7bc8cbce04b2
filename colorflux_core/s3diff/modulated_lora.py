"""LoRA layers modulated by the degradation: y = W x + s B M^T A x (S3Diff, section 3.3)."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

UNET_TARGETS = re.compile(
    r"(.*\.)?(to_[kqv]|to_out\.0|conv|conv1|conv2|conv_shortcut|conv_out|proj_in|proj_out"
    r"|ff\.net\.0\.proj|ff\.net\.2)"
)
VAE_TARGETS = re.compile(
    r"encoder\..*(conv1|conv2|conv_in|conv_shortcut|conv|conv_out|to_[kqv]|to_out\.0)"
)
UNET_STAGES, VAE_STAGES = 10, 6


def unet_stage(layer: str) -> int:
    """Stage of a UNet layer: down blocks 0-3, mid block 4, up blocks 5-8, others 9."""
    match layer.split("."):
        case ["down_blocks", i, *_]:
            return int(i)
        case ["mid_block", *_]:
            return 4
        case ["up_blocks", i, *_]:
            return 5 + int(i)
    return UNET_STAGES - 1


def vae_stage(layer: str) -> int:
    """Stage of a VAE encoder layer: down blocks 0-3, mid block 4, others 5."""
    match layer.split("."):
        case [_, "down_blocks", i, *_]:
            return int(i)
        case [_, "mid_block", *_]:
            return 4
    return VAE_STAGES - 1


class ModulatedLora(nn.Module):
    """A linear or convolutional layer with a LoRA whose matrix M is set per image.

    B M^T is folded into one matrix per image, so the cost is that of a plain LoRA.
    """

    def __init__(self, base: nn.Linear | nn.Conv2d, rank: int, scale: float) -> None:
        super().__init__()
        self.base_layer = base
        self.lora_A: nn.Linear | nn.Conv2d
        self.lora_B: nn.Linear | nn.Conv2d
        if isinstance(base, nn.Conv2d):
            like: dict[str, Any] = {
                name: getattr(base, name)
                for name in ("kernel_size", "stride", "padding", "dilation")
            }
            self.lora_A = nn.Conv2d(base.in_channels, rank, **like, bias=False)
            self.lora_B = nn.Conv2d(rank, base.out_channels, 1, bias=False)
        else:
            self.lora_A = nn.Linear(base.in_features, rank, bias=False)
            self.lora_B = nn.Linear(rank, base.out_features, bias=False)
        self.scale = scale
        self.folded: Tensor | None = None

    def modulate(self, matrices: Tensor | None) -> None:
        """Set M (N, r, r) for N images; None disables the LoRA."""
        self.folded = None
        if matrices is not None:
            weight = self.lora_B.weight
            folded = self.scale * weight.flatten(1).float() @ matrices.float().mT
            self.folded = folded.to(weight)

    def forward(self, x: Tensor, *_: object) -> Tensor:
        y = self.base_layer(x)
        return y if self.folded is None else y + _mixed(self.lora_A(x), self.folded)


def _mixed(z: Tensor, b: Tensor) -> Tensor:
    """Multiply z (n, r, h, w) or (n, l, r) by one matrix for all images, or one per image.

    A batch of n contains the N images n / N times, one after another.
    """
    spatial = z.ndim == 4
    if len(b) == 1:
        return F.conv2d(z, b[0, :, :, None, None]) if spatial else F.linear(z, b[0])
    rows = b.repeat(len(z) // len(b), 1, 1)
    return torch.einsum("nor,nrhw->nohw" if spatial else "nor,nlr->nlo", rows, z)


def attach(network: nn.Module, targets: re.Pattern[str], rank: int, scale: float) -> None:
    """Wrap each matching layer in a :class:`ModulatedLora` with uninitialized LoRA weights."""
    for name, layer in list(network.named_modules()):
        if targets.fullmatch(name):
            parent, _, child = name.rpartition(".")
            setattr(network.get_submodule(parent), child, ModulatedLora(layer, rank, scale))


def modulate(network: nn.Module, matrices: Tensor | None, stage: Callable[[str], int]) -> None:
    """Set each layer's M from its stage's entry of ``matrices`` (N, stages, r, r)."""
    for name, layer in network.named_modules():
        if isinstance(layer, ModulatedLora):
            layer.modulate(None if matrices is None else matrices[:, stage(name)])
