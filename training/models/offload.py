"""Offloading: blocks keep frozen weights in CPU memory and copy them to the device per call."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call


class BlockOffloader:
    """Copies a block's frozen weights to the device when it runs, and prefetches the next block's.

    Replaces the forward methods of ``blocks``, which must run in this order or in reverse. Copies
    run on a separate stream, which first waits for the kernels queued so far: memory freed by an
    earlier block is not overwritten while a kernel still reads it.
    """

    def __init__(self, blocks: list[nn.Module], device: torch.device) -> None:
        self.device = device
        self.host_weights = [detach_frozen_weights(block, device) for block in blocks]
        self.streams = torch.get_device_module(device)
        self.copy_stream = self.streams.Stream()
        self.previous = -1
        self.prefetched: tuple[int, dict[str, Tensor]] = (-1, {})
        for index, block in enumerate(blocks):
            block.forward = partial(self.run, index, OriginalForward(block))

    def run(self, index: int, body: OriginalForward, *args: Any, **kwargs: Any) -> Any:
        expected, weights = self.prefetched
        if expected != index:
            weights = self.copy(index)
        self.streams.current_stream().wait_stream(self.copy_stream)
        next_index = self.next_index(index)
        self.prefetched = next_index, self.copy(next_index)
        self.previous = index
        return functional_call(body, weights, args, kwargs, tie_weights=False)

    def next_index(self, index: int) -> int:
        """The block expected to run after ``index``; a wrong guess only costs an extra copy."""
        end = len(self.host_weights) - 1
        backward = index == self.previous - 1 or index == self.previous == end
        return index - 1 if backward else index + 1

    def copy(self, index: int) -> dict[str, Tensor]:
        """Start copying a block's weights to the device; empty if there is no such block."""
        if not 0 <= index < len(self.host_weights):
            return {}
        self.copy_stream.wait_stream(self.streams.current_stream())
        with self.streams.stream(self.copy_stream):
            return {
                name: tensor.to(self.device, non_blocking=True, copy=True)
                for name, tensor in self.host_weights[index].items()
            }


class OriginalForward(nn.Module):
    """A block with its original forward, as a module for `functional_call`."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block, self.run = block, block.forward

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.run(*args, **kwargs)


def detach_frozen_weights(block: nn.Module, device: torch.device) -> dict[str, Tensor]:
    """Move the block's frozen weights to the CPU and leave empty tensors on ``device``.

    Returns the weights by their names in `OriginalForward`.
    """
    detached = {}
    for name, parameter in block.named_parameters("block"):
        if not parameter.requires_grad:
            weight = parameter.data.cpu()
            detached[name] = weight.pin_memory() if device.type == "cuda" else weight
            parameter.data = weight.new_empty(0, device=device)
    return detached
