"""What one training step holds in memory, counted by running it on tensors without contents.

A stage's own loss and its gradient run on fake tensors of the true shapes, and the storages that
are born and die on the way are counted. So the figure cannot drift from the trainers, needs no
weights, and takes seconds for 12 billion parameters.

Fake tensors live on the CPU, where they can be had without a GPU. What they keep for the gradient
is what CUDA's kernels keep: attention its inputs, output and a log-sum a row; the norms see to
`norms_of_cuda`. The optimizer's step is left out: fused, it takes nothing besides its states.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.weak import WeakIdKeyDictionary


class Memory(TorchDispatchMode):
    """Counts the bytes of what is made inside: at present, and when they were most.

    ``gradients`` are those among them that `keep` was told of, and ``gradients_at_peak`` what they
    were then.
    """

    def __init__(self, known: Iterable[Tensor]) -> None:
        super().__init__()
        self.bytes = self.peak = self.gradients = self.gradients_at_peak = 0
        self.storages = WeakIdKeyDictionary({t.untyped_storage(): None for t in known})

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self.count(tensor.untyped_storage())
        return result

    def count(self, storage: torch.UntypedStorage) -> None:
        if storage in self.storages:
            return
        self.storages[storage] = None
        self.bytes += storage.nbytes()
        weakref.finalize(storage, self.forget, storage.nbytes())
        if self.bytes > self.peak:
            self.peak, self.gradients_at_peak = self.bytes, self.gradients

    def forget(self, size: int) -> None:
        self.bytes -= size

    def keep(self, weight: Tensor) -> None:
        assert weight.grad is not None
        self.gradients += weight.grad.nbytes


def counted_step(
    weights: Iterable[Tensor],
    loss: Callable[[], Tensor],
    autocast: torch.dtype | None,
    accumulating: bool,
) -> tuple[int, int]:
    """(gradients, activations) in bytes when together they are most, forward and backward.

    Of the weights, those that require gradients get them. When ``accumulating``, the gradients of
    an earlier micro batch are there from the start.
    """
    weights = list(weights)
    with Memory(weights) as memory:
        for weight in weights:
            if weight.requires_grad and accumulating:
                weight.grad = torch.empty_like(weight)
                memory.keep(weight)
            elif weight.requires_grad:
                weight.register_post_accumulate_grad_hook(memory.keep)
        with torch.autocast("cpu", autocast, enabled=autocast is not None):
            value = loss()
        value.backward()
    return memory.gradients_at_peak, memory.peak - memory.gradients_at_peak


def counted_call(
    weights: Iterable[Tensor], call: Callable[[], object], autocast: torch.dtype | None
) -> int:
    """The most bytes that a call without gradients holds besides the weights."""
    in_precision = torch.autocast("cpu", autocast, enabled=autocast is not None)
    with Memory(weights) as memory, torch.no_grad(), in_precision:
        call()
    return memory.peak


@contextmanager
def fake_models(models: Iterable[nn.Module]) -> Iterator[list[Tensor]]:
    """Inside, models on the meta device run on tensors without contents; yields their weights."""
    with FakeTensorMode(allow_non_fake_inputs=True), norms_of_cuda():
        yield [weight for model in models for weight in fake_weights(model)]


def fake_weights(model: nn.Module) -> list[Tensor]:
    """Give a model on the meta device weights that pretend to be on the CPU; returns them."""
    fakes: list[Tensor] = []
    for module in model.modules():
        for name, weight in module.named_parameters(recurse=False):
            fake = nn.Parameter(torch.empty_like(weight, device="cpu"), weight.requires_grad)
            setattr(module, name, fake)
            fakes.append(fake)
        for name, buffer in module.named_buffers(recurse=False):
            setattr(module, name, torch.empty_like(buffer, device="cpu"))
            fakes.append(getattr(module, name))
    return fakes


@contextmanager
def norms_of_cuda() -> Iterator[None]:
    """Inside, norms keep for the gradient what CUDA's keep. Their values may be wrong.

    There, autocast runs them in float32, and an RMS norm is one kernel that keeps its input and a
    number a row, as a layer norm does on any device.
    """

    def in_float32(norm: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def run(*args: Any, **options: Any) -> Tensor:
            if torch.is_autocast_enabled("cpu"):
                args, options = tree_map_only(Tensor, Tensor.float, (args, options))
            return norm(*args, **options)

        return run

    def rms_norm(
        input: Tensor, normalized_shape: list[int], weight: Tensor | None = None, eps: float = 0
    ) -> Tensor:
        return originals[0](input, normalized_shape, weight)

    originals: Any = F.layer_norm, F.group_norm, F.rms_norm
    F.layer_norm, F.group_norm = in_float32(F.layer_norm), in_float32(F.group_norm)
    F.rms_norm = in_float32(rms_norm)
    try:
        yield
    finally:
        F.layer_norm, F.group_norm, F.rms_norm = originals
