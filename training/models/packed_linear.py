"""Frozen linear layers stored in 8 or 4 bits; gradients flow through them to trained weights."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F


class PackedLinear(nn.Linear):
    """y = x W^T + b with a frozen W that is unpacked for each product.

    ``weight`` is a flat uint8 tensor: `.to`, DDP and peft leave it unchanged, and
    `load_state_dict` cannot mistake it for W.
    """

    def __init__(self, linear: nn.Linear, device: torch.device | str) -> None:
        super().__init__(linear.in_features, linear.out_features, bias=False, device="meta")
        weight, scale = self.pack(linear.weight.detach().to(device))
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.scale = nn.Parameter(scale, requires_grad=False)
        self.bias = linear.bias

    def pack(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Pack W (out, in) into a flat uint8 tensor and float32 scales."""
        raise NotImplementedError

    def unpack(self, weight: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
        """W (out, in) in ``dtype``, from the result of `pack`."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        device_type = x.device.type
        if torch.is_autocast_enabled(device_type):
            x = x.to(torch.get_autocast_dtype(device_type))
        bias = None if self.bias is None else self.bias.to(x.dtype)
        return _PackedMatmul.apply(x, self.unpack, self.weight, self.scale, bias)


class Float8Linear(PackedLinear):
    """float8_e4m3fn (3 mantissa bits), each row scaled by a power of two.

    Without the scale, weights below 2^-6 would be subnormal and lose precision.
    """

    def pack(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        largest = weight.float().abs().amax(1, keepdim=True)
        scale = torch.ldexp(torch.ones_like(largest), torch.frexp(largest).exponent - 8)
        return (weight / scale).to(torch.float8_e4m3fn).view(torch.uint8).flatten(), scale

    def unpack(self, weight: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
        return weight.view(torch.float8_e4m3fn).to(dtype).view(len(scale), -1).mul_(scale.to(dtype))


class NF4Linear(PackedLinear):
    """bitsandbytes' NF4 (QLoRA, arXiv 2305.14314): 4.5 bits per weight, a scale per 64 weights.

    bitsandbytes' own Linear4bit is not used: on a CPU it gives no gradients once it has run without
    gradients, and gradient checkpointing does not see the weights that it saves for backward.
    """

    def pack(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        packed, scale = torch.ops.bitsandbytes.quantize_4bit(weight, 64, "nf4", torch.uint8)
        return packed.flatten(), scale

    def unpack(self, weight: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
        shape = (self.out_features, self.in_features)
        scale = scale.float()  # FSDP's mixed precision may have cast it to 16 bits.
        return torch.ops.bitsandbytes.dequantize_4bit(weight, scale, 64, "nf4", shape, dtype)


class _PackedMatmul(torch.autograd.Function):
    """x W^T + b, which saves the packed W for the gradient of x, g W."""

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
