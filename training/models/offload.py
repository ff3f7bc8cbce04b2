"""Blocks whose frozen weights live in CPU memory and are copied to the device for each call."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call


class BlockOffloader:
    """Copies each block's frozen weights to the device when it runs, and the next block's ahead.

    ``blocks`` run in this order or in its reverse; their forward is replaced. Copies are allocated
    on a stream of their own, which first waits for the kernels queued so far, so memory freed by a
    past block is never overwritten while a kernel still reads it.
    """

    def __init__(self, blocks: list[nn.Module], device: torch.device) -> None:
        self.device = device
        self.waiting = [take_weights(block, device) for block in blocks]
        self.streams = torch.get_device_module(device)
        self.copying = self.streams.Stream()
        self.last = -1
        self.coming: tuple[int, dict[str, Tensor]] = (-1, {})
        for index, block in enumerate(blocks):
            block.forward = partial(self.run, index, Body(block))

    def run(self, index: int, body: Body, *args: Any, **kwargs: Any) -> Any:
        expected, weights = self.coming
        if expected != index:
            weights = self.copy(index)
        self.streams.current_stream().wait_stream(self.copying)
        following = self.following(index)
        self.coming = following, self.copy(following)
        self.last = index
        return functional_call(body, weights, args, kwargs, tie_weights=False)

    def following(self, index: int) -> int:
        """The block to expect after ``index``; a wrong guess costs a copy and nothing else."""
        end = len(self.waiting) - 1
        backward = index == self.last - 1 or index == self.last == end
        return index - 1 if backward else index + 1

    def copy(self, index: int) -> dict[str, Tensor]:
        if not 0 <= index < len(self.waiting):
            return {}
        self.copying.wait_stream(self.streams.current_stream())
        with self.streams.stream(self.copying):
            return {
                name: tensor.to(self.device, non_blocking=True, copy=True)
                for name, tensor in self.waiting[index].items()
            }


class Body(nn.Module):
    """A block with the forward that it had, as something that `functional_call` can call."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block, self.run = block, block.forward

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.run(*args, **kwargs)


def take_weights(block: nn.Module, device: torch.device) -> dict[str, Tensor]:
    """The block's frozen weights, by their names in `Body`; leaves empty ones on ``device``."""
    taken = {}
    for name, parameter in block.named_parameters("block"):
        if not parameter.requires_grad:
            weight = parameter.data.cpu()
            taken[name] = weight.pin_memory() if device.type == "cuda" else weight
            parameter.data = weight.new_empty(0, device=device)
    return taken
