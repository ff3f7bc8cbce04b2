"""Frozen linear layers in 8 or 4 bits, through which gradients pass to what is trained."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F


class PackedLinear(nn.Linear):
    """y = x W^T + b with a frozen W, which is unpacked anew for every product.

    ``weight`` is a row of bytes, which `.to`, DDP and peft carry along without looking into them,
    and which no `load_state_dict` takes for the weights that they stand for.
    """

    def __init__(self, linear: nn.Linear, device: torch.device | str) -> None:
        super().__init__(linear.in_features, linear.out_features, bias=False, device="meta")
        weight, scale = self.pack(linear.weight.detach().to(device))
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.scale = nn.Parameter(scale, requires_grad=False)
        self.bias = linear.bias

    def pack(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Bytes and float32 scales of W (out, in)."""
        raise NotImplementedError

    def unpack(self, weight: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
        """W (out, in) of what `pack` gave."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        kind = x.device.type
        if torch.is_autocast_enabled(kind):
            x = x.to(torch.get_autocast_dtype(kind))
        bias = None if self.bias is None else self.bias.to(x.dtype)
        return _Product.apply(x, self.unpack, self.weight, self.scale, bias)


class Float8Linear(PackedLinear):
    """float8_e4m3fn: W to 3 bits behind its leading one, each row scaled by a power of two.

    Without the scale, weights below 2^-6 would lose bits.
    """

    def pack(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        largest = weight.float().abs().amax(1, keepdim=True)
        scale = torch.ldexp(torch.ones_like(largest), torch.frexp(largest).exponent - 8)
        return (weight / scale).to(torch.float8_e4m3fn).view(torch.uint8).flatten(), scale

    def unpack(self, weight: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
        return weight.view(torch.float8_e4m3fn).to(dtype).view(len(scale), -1).mul_(scale.to(dtype))


class NF4Linear(PackedLinear):
    """bitsandbytes' NF4 (QLoRA, arXiv 2305.14314): 64 weights share a scale, 4.5 bits each.

    Not its own Linear4bit, which gives no gradients on a CPU after a pass without them, and whose
    saved weights gradient checkpointing does not see.
    """

    def pack(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        packed, scale = torch.ops.bitsandbytes.quantize_4bit(weight, 64, "nf4", torch.uint8)
        return packed.flatten(), scale

    def unpack(self, weight: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
        shape = (self.out_features, self.in_features)
        scale = scale.float()  # FSDP's mixed precision may have halved it.
        return torch.ops.bitsandbytes.dequantize_4bit(weight, scale, 64, "nf4", shape, dtype)


class _Product(torch.autograd.Function):
    """x W^T + b; what it saves for x's gradient g W is the packed W."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, unpack: Any, weight: Tensor, scale: Tensor, bias: Tensor | None
    ) -> Tensor:
        ctx.unpack = unpack
        ctx.save_for_backward(weight, scale)
        return F.linear(x, unpack(weight, scale, x.dtype), bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None, None, None, None]:
        return g @ ctx.unpack(*ctx.saved_tensors, g.dtype), None, None, None, None
