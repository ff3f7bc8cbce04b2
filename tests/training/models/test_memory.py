"""Gradients through weights that are packed, waiting elsewhere or compiled are the plain ones."""

from __future__ import annotations

import copy
import importlib.util
import io
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import FluxControlNetModel, FluxTransformer2DModel
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode

from colorflux_core.errors import ColorFluxError
from colorflux_core.model.control import control_from_transformer
from colorflux_core.model.lora import add_lora, reference_policy, save_lora
from tests.flux_models import tiny_transformer, transformer_inputs, velocity
from tests.nano_models import tiny_controlnet, tiny_siglip
from training.models.blocks import blocks
from training.models.memory import (
    checkpoint_blocks,
    compile_blocks,
    make_optimizer,
    offload_blocks,
    store_frozen,
)
from training.models.packed_linear import Float8Linear, PackedLinear

needs_bitsandbytes = pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed"
)
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU")
PACKED = ["fp8", pytest.param("nf4", marks=needs_bitsandbytes)]
OPTIMIZERS = ["adamw", pytest.param("adamw8bit", marks=needs_bitsandbytes)]
Round = Callable[[Tensor], Tensor]


def to_fp8(weight: Tensor) -> Tensor:
    """Four significant bits, no finer than 2^-18 of the power of two above the row's largest."""
    row = weight.abs().amax(1, keepdim=True).frexp().exponent
    step = torch.exp2(torch.maximum(weight.frexp().exponent, row - 13) - 4.0)
    return (weight / step).round() * step


def to_nf4(weight: Tensor) -> Tensor:
    functional = pytest.importorskip("bitsandbytes.functional")
    return functional.dequantize_4bit(*functional.quantize_4bit(weight, quant_type="nf4"))


ROUND: dict[str, Round] = {"fp8": to_fp8, "nf4": to_nf4, "float32": lambda weight: weight}


def held(how: Any, model: nn.Module | None = None, device: str = "cpu") -> Any:
    """A frozen model whose other weights are floats again, so that it computes in float32."""
    return store_frozen(model or tiny_transformer(), how, device).float()


def rounded(how: str) -> FluxTransformer2DModel:
    """The plain transformer with the weights that `held` should have."""
    transformer = tiny_transformer().requires_grad_(False)
    if how != "float32":
        transformer.bfloat16().float()
    for block in blocks(transformer):
        for layer in block.modules():
            if isinstance(layer, nn.Linear):
                layer.weight.data = ROUND[how](layer.weight.data)
    return transformer


def with_lora(transformer: FluxTransformer2DModel) -> FluxTransformer2DModel:
    """One that does something."""
    random = torch.Generator().manual_seed(5)
    for parameter in add_lora(transformer, 4):
        parameter.data.copy_(torch.randn(parameter.shape, generator=random) * 0.1)
    return transformer


def gradients(
    transformer: FluxTransformer2DModel, controlnet: FluxControlNetModel | None = None
) -> list[Tensor]:
    """Of the prompt, the ControlNet's residuals and the LoRA; the prompt reaches FLUX both ways."""
    device = transformer.device
    inputs = {name: tensor.to(device) for name, tensor in transformer_inputs().items()}
    prompt = inputs["encoder_hidden_states"].requires_grad_()
    controlnet = controlnet or tiny_controlnet().requires_grad_(False).to(device)
    double, single = controlnet(
        **inputs, controlnet_cond=inputs["hidden_states"], return_dict=False
    )
    predicted = transformer(
        **inputs,
        controlnet_block_samples=double,
        controlnet_single_block_samples=single,
        return_dict=False,
    )[0]
    lora = [parameter for parameter in transformer.parameters() if parameter.requires_grad]
    found = torch.autograd.grad(predicted.square().mean(), [prompt, *double, *single, *lora])
    return [gradient.cpu() for gradient in found]


def assert_same(actual: list[Tensor], expected: list[Tensor], tolerance: float = 1e-4) -> None:
    for a, e in zip(actual, expected, strict=True):
        assert_close(a, e, rtol=0, atol=tolerance * e.abs().max().item())


@contextmanager
def counting_saved() -> Iterator[list[int]]:
    """Bytes of every tensor that autograd saves outside of checkpointed blocks."""
    saved: list[int] = []

    def count(tensor: Tensor) -> Tensor:
        saved.append(tensor.nbytes)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        yield saved


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=needs_cuda)])
@pytest.mark.parametrize("how", PACKED)
def test_packed_weights_are_rounded_ones(how: str, device: str) -> None:
    layer = nn.Linear(192, 48)
    layer.weight.data[0] = 0
    layer.weight.data[1] *= torch.logspace(0, -6, 192)
    packed = type(held(how).transformer_blocks[0].attn.to_q)(layer, device)
    assert isinstance(packed, PackedLinear)
    unpacked = packed.unpack(packed.weight, packed.scale, torch.float32).cpu()
    assert_close(unpacked, ROUND[how](layer.weight.data), rtol=1e-6, atol=1e-8)


def test_fp8_is_as_exact_for_small_weights() -> None:
    layer = nn.Linear(128, 8)
    packed = Float8Linear(layer, "cpu").weight.clone()
    layer.weight.data *= 2.0**-9
    assert torch.equal(Float8Linear(layer, "cpu").weight, packed)


@pytest.mark.parametrize("how", PACKED)
def test_gradients_through_packed_weights(how: str) -> None:
    expected = gradients(rounded(how))
    assert_same(gradients(held(how)), expected)
    with pytest.raises(AssertionError):
        assert_same(gradients(rounded("float32")), expected)


def test_gradients_through_a_packed_controlnet() -> None:
    plain = tiny_controlnet().requires_grad_(False).bfloat16().float()
    for block in blocks(plain):
        for layer in block.modules():
            if isinstance(layer, nn.Linear):
                layer.weight.data = to_fp8(layer.weight.data)
    packed = held("fp8", tiny_controlnet())
    transformer = rounded("float32")
    assert_same(gradients(transformer, packed), gradients(transformer, plain))


@pytest.mark.parametrize("how", PACKED)
def test_lora_on_packed_weights(how: Any, tmp_path: Path) -> None:
    transformer = with_lora(held(how))
    assert_same(gradients(transformer), gradients(with_lora(rounded(how))))

    path = tmp_path / "lora.safetensors"
    save_lora(transformer, path)
    resumed = held(how)
    add_lora(resumed, start=path)
    with torch.no_grad():
        assert torch.equal(velocity(resumed), velocity(transformer))
        with reference_policy(transformer):
            assert torch.equal(velocity(transformer), velocity(held(how)))


def test_fresh_lora_is_not_rounded_to_the_storage() -> None:
    first, *_ = add_lora(held("fp8"), 4)
    assert not torch.equal(first, first.bfloat16().float())


def test_only_linear_layers_of_blocks_are_packed() -> None:
    for model in (tiny_transformer(), tiny_controlnet(), tiny_siglip()):
        store_frozen(model, "fp8", "cpu")
        inside = {id(layer) for block in blocks(model) for layer in block.modules()}
        for layer in model.modules():
            packed = isinstance(layer, nn.Linear) and id(layer) in inside
            assert isinstance(layer, PackedLinear) == packed
            for name, parameter in layer.named_parameters(recurse=False):
                if not packed or name == "bias":
                    assert parameter.dtype == torch.bfloat16
                assert not parameter.requires_grad


@pytest.mark.parametrize("how", ["bfloat16", *PACKED])
def test_skeleton_tells_the_bytes(how: Any) -> None:
    real = store_frozen(tiny_transformer(), how, "cpu")
    skeleton = store_frozen(tiny_transformer().to("meta"), how, "meta")
    sizes = [[weight.nbytes for weight in model.parameters()] for model in (real, skeleton)]
    assert sizes[0] == sizes[1]


def test_packed_weights_alone_are_kept_for_the_gradient() -> None:
    packed = Float8Linear(nn.Linear(128, 96), "cpu")
    with counting_saved() as saved:
        packed(torch.randn(4, 128, requires_grad=True))
    assert sum(saved) == 128 * 96 + 4 * 96


def test_autocast_decides_the_dtype_of_products() -> None:
    packed = Float8Linear(nn.Linear(128, 96), "cpu")
    x = torch.randn(4, 128, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        y = packed(x)
    assert y.dtype == torch.bfloat16
    (gradient,) = torch.autograd.grad(y.sum(), x)
    expected = packed.unpack(packed.weight, packed.scale, torch.float32).sum(0).expand(4, 128)
    assert_close(gradient, expected, rtol=0.02, atol=0.02)


def test_controlnet_cannot_start_from_packed_or_waiting_weights() -> None:
    waiting = tiny_transformer().requires_grad_(False)
    offload_blocks(waiting, "cpu")
    for transformer in (store_frozen(tiny_transformer(), "fp8", "cpu"), waiting):
        with pytest.raises(RuntimeError):
            control_from_transformer(transformer, 1, 2)


def test_checkpointed_blocks_keep_less_and_lose_no_gradient() -> None:
    """Only the LoRA needs a gradient, so no input of the first block does."""

    def run(transformer: FluxTransformer2DModel) -> tuple[list[Tensor], int]:
        lora = [p for p in transformer.parameters() if p.requires_grad]
        with counting_saved() as saved:
            loss = velocity(transformer).square().mean()
        return list(torch.autograd.grad(loss, lora)), sum(saved)

    transformer = with_lora(tiny_transformer())
    expected, kept = run(transformer)
    checkpoint_blocks(transformer)
    found, kept_with_checkpoints = run(transformer)
    assert_same(found, expected)
    assert kept_with_checkpoints < kept / 10


def test_checkpointed_siglip() -> None:
    """In eval mode, in which it is loaded."""

    def run() -> tuple[list[Tensor], int]:
        with counting_saved() as saved:
            tokens = siglip(pixel_values=pixels).last_hidden_state
        weights = [weight for block in blocks(siglip) for weight in block.parameters()]
        return list(torch.autograd.grad(tokens.square().mean(), weights)), sum(saved)

    siglip, pixels = tiny_siglip(), torch.randn(2, 3, 32, 32)
    expected, kept = run()
    checkpoint_blocks(siglip)
    found, kept_with_checkpoints = run()
    assert_same(found, expected)
    assert kept_with_checkpoints < kept / 2


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=needs_cuda)])
@pytest.mark.parametrize("how", ["float32", *PACKED])
def test_gradients_of_visiting_blocks(how: Any, device: str) -> None:
    transformer = with_lora(held(how))
    with torch.no_grad(), reference_policy(transformer):
        reference = velocity(transformer)
    expected = gradients(transformer)

    offload_blocks(transformer, device)
    assert all(p.device.type == device for p in transformer.parameters())
    assert_same(gradients(transformer), expected, 1e-3)
    if device == "cpu":
        with torch.no_grad(), reference_policy(transformer):
            assert torch.equal(velocity(transformer), reference)
    assert_same(gradients(transformer), expected, 1e-3)


class Copies(TorchDispatchMode):
    """Follows the copies of weights: how many are made, how many bytes of them live at once."""

    def __init__(self) -> None:
        super().__init__()
        self.made = self.most = 0
        self.living: list[tuple[StorageWeakRef, int]] = []

    def __torch_dispatch__(
        self, operation: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        result = operation(*args, **(kwargs or {}))
        if operation is torch.ops.aten._to_copy.default and result.dtype == args[0].dtype:
            self.made += 1
            self.living.append((StorageWeakRef(result.untyped_storage()), result.nbytes))
            self.most = max(self.most, self.now())
        return result

    def now(self) -> int:
        self.living = [(storage, size) for storage, size in self.living if not storage.expired()]
        return sum(size for _, size in self.living)


def test_two_blocks_at_most_visit_at_once() -> None:
    transformer = tiny_transformer(3, 3).requires_grad_(False)
    sizes = [sum(p.nbytes for p in block.parameters()) for block in blocks(transformer)]
    tensors = sum(1 for block in blocks(transformer) for _ in block.parameters())
    controlnet = tiny_controlnet().requires_grad_(False)
    offload_blocks(transformer, "cpu")
    assert sum(p.nbytes for block in blocks(transformer) for p in block.parameters()) == 0
    with Copies() as copies:
        gradients(transformer, controlnet)
    assert copies.most == 2 * max(sizes)
    assert copies.made == 2 * tensors  # Once forward, once backward: no guess was wrong.
    assert copies.now() == 0


def test_lora_of_waiting_weights_is_saved(tmp_path: Path) -> None:
    transformer = with_lora(tiny_transformer())
    with torch.no_grad():
        expected = velocity(transformer)
    offload_blocks(transformer, "cpu")
    save_lora(transformer, tmp_path / "lora.safetensors")
    loaded = tiny_transformer()
    add_lora(loaded, start=tmp_path / "lora.safetensors")
    with torch.no_grad():
        assert_close(velocity(loaded), expected)


def test_gradients_of_compiled_blocks() -> None:
    """A single block alone: compiling takes seconds."""
    transformer = with_lora(held("fp8", tiny_transformer(0, 1)))
    lora = [parameter for parameter in transformer.parameters() if parameter.requires_grad]

    def run() -> list[Tensor]:
        return list(torch.autograd.grad(velocity(transformer).square().mean(), lora))

    expected = run()
    checkpoint_blocks(transformer)
    compile_blocks(transformer, backend="aot_eager", fullgraph=True)
    assert_same(run(), expected)


def parameters() -> list[nn.Parameter]:
    """A matrix, and a vector too short for 8 bits."""
    random = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(shape, generator=random)) for shape in ((64, 128), (5,))]


def descend(
    optimizer: torch.optim.Optimizer, weights: list[nn.Parameter], steps: range
) -> list[nn.Parameter]:
    for step in steps:
        random = torch.Generator().manual_seed(step)
        for weight in weights:
            weight.grad = torch.randn(weight.shape, generator=random)
        optimizer.step()
    return weights


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_first_step_of_adamw(name: Any) -> None:
    """w - lr (weight_decay w + sign g): both moments agree on the only gradient."""
    weights, start = parameters(), parameters()
    descend(make_optimizer(name, weights, 0.01, 0.1), weights, range(1))
    for weight, w in zip(weights, start, strict=True):
        assert weight.grad is not None
        assert_close(weight, w - 0.01 * (0.1 * w + weight.grad.sign()), rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_resumed_optimizer_goes_on_bit_identically(name: Any) -> None:
    weights = parameters()
    optimizer = make_optimizer(name, weights, 0.01, 0.1)
    descend(optimizer, weights, range(3))
    file = io.BytesIO()
    torch.save({"optimizer": optimizer.state_dict(), "weights": weights}, file)
    expected = descend(optimizer, weights, range(3, 6))

    file.seek(0)
    state = torch.load(file, weights_only=True)
    resumed = [nn.Parameter(weight.detach()) for weight in state["weights"]]
    optimizer = make_optimizer(name, resumed, 0.01, 0.1)
    optimizer.load_state_dict(copy.deepcopy(state["optimizer"]))
    for actual, weight in zip(descend(optimizer, resumed, range(3, 6)), expected, strict=True):
        assert torch.equal(actual, weight)


@needs_bitsandbytes
def test_8_bit_moments_are_small_and_near() -> None:
    weights, exact, start = parameters(), parameters(), parameters()
    optimizer = make_optimizer("adamw8bit", weights, 0.01, 0.1)
    descend(optimizer, weights, range(30))
    descend(make_optimizer("adamw", exact, 0.01, 0.1), exact, range(30))
    assert (weights[0] - exact[0]).norm() < 0.05 * (exact[0] - start[0]).norm()
    moments = [optimizer.state[weights[0]][f"state{i}"] for i in (1, 2)]
    assert [moment.nbytes for moment in moments] == [weights[0].numel()] * 2


def test_missing_bitsandbytes_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(ColorFluxError, match=r"--frozen nf4 needs .* pip install bitsandbytes"):
        store_frozen(tiny_transformer(), "nf4", "cpu")
    with pytest.raises(ColorFluxError, match=r"--optimizer adamw8bit needs .* pip install"):
        make_optimizer("adamw8bit", parameters(), 0.01, 0.1)
