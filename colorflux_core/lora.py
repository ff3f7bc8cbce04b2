"""The Pro-DPO LoRA: where it sits in FLUX.1, its file, and how it is loaded or merged.

Paper section 5.1: rank 32 on attention and feed-forward of every MM-DiT block. The file holds
`transformer.<module>.lora_{A,B}.weight` with alpha = rank, so that W' = W + scale * B A holds in
diffusers and in ComfyUI alike.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from diffusers import FluxPipeline, FluxTransformer2DModel
from peft import LoraConfig, get_peft_model_state_dict
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from .errors import ColorFluxError

ADAPTER = "pro_dpo"

TARGET_MODULES = (
    r"transformer_blocks\.\d+\.("
    r"attn\.(to_q|to_k|to_v|to_out\.0|add_q_proj|add_k_proj|add_v_proj|to_add_out)"
    r"|ff(_context)?\.net\.(0\.proj|2))"
    r"|single_transformer_blocks\.\d+\.(attn\.to_[qkv]|proj_mlp|proj_out)"
)
"""Matched against whole module names, so that the model's head `proj_out` stays out."""

_KEY = re.compile(
    r"(?:base_model\.model\.)?(?:transformer\.)?(?P<module>.+)"
    r"\.(?:(?P<half>lora_[AB])(?:\.\w+)?\.weight|alpha)"
)


def add_lora(
    transformer: FluxTransformer2DModel, rank: int = 32, adapter_name: str = ADAPTER
) -> list[nn.Parameter]:
    """Attach a fresh LoRA (A gaussian, B zero: the model's output is unchanged) for training.

    Returns its parameters, in float32 whatever the base's dtype; everything else is frozen.
    """
    config = LoraConfig(
        r=rank, lora_alpha=rank, init_lora_weights="gaussian", target_modules=TARGET_MODULES
    )
    transformer.add_adapter(config, adapter_name=adapter_name)
    parameters = [p for p in transformer.parameters() if p.requires_grad]
    for parameter in parameters:
        parameter.data = parameter.data.float()
    return parameters


@contextmanager
def reference_policy(transformer: FluxTransformer2DModel) -> Iterator[None]:
    """Inside, the transformer is DPO's reference: the same weights without any adapter."""
    transformer.disable_adapters()
    try:
        yield
    finally:
        transformer.enable_adapters()


def save_lora(
    transformer: FluxTransformer2DModel,
    path: str | Path,
    metadata: Mapping[str, str] | None = None,
    adapter_name: str = ADAPTER,
) -> None:
    """Write the adapter as one safetensors file; `path` is whole or untouched.

    Raises ColorFluxError when the file cannot be written.
    """
    weights = get_peft_model_state_dict(transformer, adapter_name=adapter_name)
    state = {f"transformer.{key}": w.detach().cpu().contiguous() for key, w in weights.items()}
    for module, (a, _) in list(_pairs(state)):
        state[f"transformer.{module}.alpha"] = torch.tensor(float(a.shape[0]))
    path = Path(path)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        save_file(state, partial, metadata={"format": "pt", **(metadata or {})})
        partial.replace(path)
    except (OSError, SafetensorError) as error:
        partial.unlink(missing_ok=True)
        raise ColorFluxError(f"Cannot write the LoRA to {path}: {error}") from error


def load_lora(
    transformer: FluxTransformer2DModel,
    path: str | Path,
    scale: float = 1.0,
    adapter_name: str = ADAPTER,
) -> None:
    """Attach the LoRA in `path` and make it the active one: W' = W + scale * B A.

    Raises ColorFluxError as `load_lora_state`, and when the file fits another model.
    """
    state = load_lora_state(path)
    _check_fits(state, transformer, path)
    transformer.load_lora_adapter(state, prefix="transformer", adapter_name=adapter_name)
    transformer.set_adapters(adapter_name, scale)


@torch.no_grad()
def merge_lora(transformer: FluxTransformer2DModel, path: str | Path, scale: float = 1.0) -> None:
    """Add the LoRA in `path` to the weights themselves: W <- W + scale * B A, in float32.

    Raises ColorFluxError as `load_lora`.
    """
    state = load_lora_state(path)
    _check_fits(state, transformer, path)
    for module, (a, b) in _pairs(state):
        weight = transformer.get_submodule(module).weight
        delta = scale * (b.float() @ a.float()).to(weight.device)
        weight.copy_(weight.float() + delta)


def load_lora_state(path: str | Path) -> dict[str, Tensor]:
    """The LoRA in `path`, normalised: `normalise` gives the keys.

    Raises ColorFluxError when the file cannot be read, is no FLUX.1 LoRA, holds something that
    would not be applied, or holds NaN or infinite weights.
    """
    try:
        state = load_file(path)
    except (OSError, SafetensorError) as error:
        raise ColorFluxError(f"Cannot read the LoRA {path}: {error}") from error
    try:
        return normalise(state)
    except ColorFluxError as error:
        raise ColorFluxError(f"The LoRA {path} cannot be used: {error}") from error


def normalise(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Any known FLUX.1 LoRA as `transformer.<module>.lora_{A,B}.weight` pairs with scale 1.

    Known: diffusers, peft (bare, `base_model.model.`, with an adapter name), and those that
    diffusers converts (kohya, xlabs, ...). Alpha is folded into B.

    Raises ColorFluxError when a key would be dropped, a half is missing or a weight is not finite.
    """
    for key in state:
        if key.startswith(("lora_te", "text_encoder")) or "dora_scale" in key:
            raise ColorFluxError(f"{key} would be ignored: only LoRAs of the transformer are.")
    if not any(".lora_A." in key for key in state):
        state = _converted(state)
    modules: dict[str, dict[str, Tensor]] = {}
    for key, tensor in state.items():
        match = _KEY.fullmatch(key)
        if match is None:
            raise ColorFluxError(f"{key} is not a LoRA weight of FLUX.1.")
        if not tensor.isfinite().all():
            raise ColorFluxError(f"{key} holds NaN or infinite values.")
        modules.setdefault(match["module"], {})[match["half"] or "alpha"] = tensor
    result = {}
    for module, parts in modules.items():
        if not {"lora_A", "lora_B"} <= parts.keys():
            raise ColorFluxError(f"{module} has only {', '.join(parts)}; A and B are both needed.")
        a, b = parts["lora_A"], parts["lora_B"]
        if "alpha" in parts:
            b = b * (parts["alpha"].item() / a.shape[0])
        result[f"transformer.{module}.lora_A.weight"] = a
        result[f"transformer.{module}.lora_B.weight"] = b
    return result


def _converted(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    try:
        return FluxPipeline.lora_state_dict(dict(state))
    except (ValueError, KeyError, AssertionError, RuntimeError) as error:
        raise ColorFluxError(f"not a FLUX.1 LoRA that diffusers can convert ({error}).") from error


def _pairs(state: Mapping[str, Tensor]) -> Iterator[tuple[str, tuple[Tensor, Tensor]]]:
    for key, a in state.items():
        if key.endswith(".lora_A.weight"):
            stem = key.removesuffix(".lora_A.weight")
            yield stem.removeprefix("transformer."), (a, state[f"{stem}.lora_B.weight"])


def _check_fits(
    state: Mapping[str, Tensor], transformer: FluxTransformer2DModel, path: str | Path
) -> None:
    """Refuse what diffusers would skip, pad with zeros or widen the model for."""
    linear = {n: m for n, m in transformer.named_modules() if isinstance(m, nn.Linear)}
    for module, (a, b) in _pairs(state):
        layer = linear.get(module)
        if layer is None:
            raise ColorFluxError(f"The LoRA {path} is for another model: {module} is unknown.")
        if (b.shape[0], a.shape[1]) != layer.weight.shape or a.shape[0] != b.shape[1]:
            raise ColorFluxError(
                f"The LoRA {path} is for another model: {module} is {tuple(layer.weight.shape)}, "
                f"B {tuple(b.shape)}, A {tuple(a.shape)}."
            )
