"""The memory that one training step needs, counted by running the step on fake tensors.

A stage's own loss and backward pass run on fake tensors of the real shapes, while storages are
counted as they are allocated and freed. The result therefore always matches the trainers, needs no
weights, and takes seconds for 12 billion parameters.

The fake tensors are on the CPU, so that no GPU is needed. Autograd saves the same tensors for them
as for CUDA kernels: for attention, inputs, output and one log-sum-exp per row; for norms, see
`emulate_cuda_norms`. The optimizer step is not counted: a fused step allocates nothing.
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


class MemoryCounter(TorchDispatchMode):
    """Counts the bytes of all storages allocated inside the context.

    Attributes:
        bytes: Allocated now.
        peak: The maximum of ``bytes``.
        gradients: The part of ``bytes`` that was reported to `add_gradient`.
        gradients_at_peak: The value of ``gradients`` when ``peak`` was reached.
    """

    def __init__(self, known: Iterable[Tensor]) -> None:
        """``known`` tensors are not counted."""
        super().__init__()
        self.bytes = self.peak = self.gradients = self.gradients_at_peak = 0
        self.storages = WeakIdKeyDictionary({t.untyped_storage(): None for t in known})

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self.add_storage(tensor.untyped_storage())
        return result

    def add_storage(self, storage: torch.UntypedStorage) -> None:
        """Count a storage until it is freed, unless it is already counted."""
        if storage in self.storages:
            return
        self.storages[storage] = None
        self.bytes += storage.nbytes()
        weakref.finalize(storage, self.release, storage.nbytes())
        if self.bytes > self.peak:
            self.peak, self.gradients_at_peak = self.bytes, self.gradients

    def release(self, size: int) -> None:
        self.bytes -= size

    def add_gradient(self, weight: Tensor) -> None:
        """Count a weight's gradient as one that is kept until the optimizer step."""
        assert weight.grad is not None
        self.gradients += weight.grad.nbytes


def step_memory(
    weights: Iterable[Tensor],
    loss: Callable[[], Tensor],
    autocast: torch.dtype | None,
    accumulating: bool,
) -> tuple[int, int]:
    """Bytes of (gradients, activations) at the peak of a forward and backward pass.

    Args:
        weights: All weights of the models; those with ``requires_grad`` get gradients.
        loss: Computes the loss.
        autocast: The autocast dtype, or None.
        accumulating: Whether gradients of an earlier micro-batch exist from the start.
    """
    weights = list(weights)
    with MemoryCounter(weights) as memory:
        for weight in weights:
            if weight.requires_grad and accumulating:
                weight.grad = torch.empty_like(weight)
                memory.add_gradient(weight)
            elif weight.requires_grad:
                weight.register_post_accumulate_grad_hook(memory.add_gradient)
        with torch.autocast("cpu", autocast, enabled=autocast is not None):
            value = loss()
        value.backward()
    return memory.gradients_at_peak, memory.peak - memory.gradients_at_peak


def forward_memory(
    weights: Iterable[Tensor], call: Callable[[], object], autocast: torch.dtype | None
) -> int:
    """Peak bytes of a call without gradients, not counting the weights."""
    in_precision = torch.autocast("cpu", autocast, enabled=autocast is not None)
    with MemoryCounter(weights) as memory, torch.no_grad(), in_precision:
        call()
    return memory.peak


@contextmanager
def fake_models(models: Iterable[nn.Module]) -> Iterator[list[Tensor]]:
    """Context in which models on the meta device run on fake tensors; yields their weights."""
    with FakeTensorMode(allow_non_fake_inputs=True), emulate_cuda_norms():
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
def emulate_cuda_norms() -> Iterator[None]:
    """Context in which norms save the same tensors for backward as on CUDA; values may be wrong.

    On CUDA, autocast runs norms in float32, and RMS norm is one kernel that saves its input and one
    number per row. The CPU's layer norm does that too, so it stands in for the RMS norm.
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
