"""The Pro-DPO LoRA: where it sits in FLUX.1, its file, and how it is loaded or merged.

Paper section 5.1: rank 32 on attention and feed-forward of every MM-DiT block. The file holds
`transformer.<module>.lora_{A,B}.weight` with alpha = rank, so that W' = W + scale * B A holds in
diffusers and in ComfyUI alike.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from textwrap import shorten
from typing import Any

import torch
from diffusers import FluxTransformer2DModel
from diffusers.loaders import FluxLoraLoaderMixin
from peft import LoraConfig, get_peft_model_state_dict, set_peft_model_state_dict
from peft.utils.other import get_pattern_key
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ..errors import ColorFluxError
from ..files import atomic_write

ADAPTER = "pro_dpo"

TARGET_MODULES = (
    r"transformer_blocks\.\d+\.("
    r"attn\.(to_q|to_k|to_v|to_out\.0|add_q_proj|add_k_proj|add_v_proj|to_add_out)"
    r"|ff(_context)?\.net\.(0\.proj|2))"
    r"|single_transformer_blocks\.\d+\.(attn\.to_[qkv]|proj_mlp|proj_out)"
)
"""Matched against full module names, so that the model's own `proj_out` is not included."""

_A = ".lora_A.weight"
_KEY = re.compile(
    r"(?:base_model\.model\.)?(?:transformer\.)?(?P<module>.+)"
    r"\.(?:(?P<half>lora_[AB])(?:\.\w+)?\.weight|alpha)"
)


def add_lora(
    transformer: FluxTransformer2DModel,
    rank: int = 32,
    start: str | Path | None = None,
    adapter_name: str = ADAPTER,
) -> list[nn.Parameter]:
    """Attach a LoRA for training and freeze everything else; return its parameters, in float32.

    A new LoRA has Gaussian A and zero B, so it does not change the output. `start` continues from
    a file instead (Pro-DPO's second stage), whose rank is used.

    Raises ColorFluxError in the same cases as `load_lora`.
    """
    if start is None:
        config = LoraConfig(
            r=rank, lora_alpha=rank, init_lora_weights="gaussian", target_modules=TARGET_MODULES
        )
        transformer.add_adapter(config, adapter_name=adapter_name)
    else:
        load_lora(transformer, start, adapter_name=adapter_name)
    parameters = [p for p in transformer.parameters() if p.requires_grad]
    for parameter in parameters:
        parameter.data = parameter.data.float()
    if start is not None:  # load_lora rounded them to the transformer's dtype.
        state = {k.removeprefix("transformer."): w for k, w in load_lora_state(start).items()}
        set_peft_model_state_dict(transformer, state, adapter_name=adapter_name)
    return parameters


@contextmanager
def reference_policy(transformer: FluxTransformer2DModel) -> Iterator[None]:
    """Disable all adapters: the transformer is then DPO's reference policy."""
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
    weights: Mapping[str, Tensor] | None = None,
) -> None:
    """Write the adapter atomically as one safetensors file.

    `weights` are the adapter's full tensors by their names in the transformer; they are needed if
    the transformer itself is sharded.

    Raises ColorFluxError when the file cannot be written.
    """
    adapter = get_peft_model_state_dict(transformer, weights, adapter_name=adapter_name)
    state = {f"transformer.{key}": w.detach().cpu().contiguous() for key, w in adapter.items()}
    for module, a, _ in list(_pairs(state)):
        state[f"transformer.{module}.alpha"] = torch.tensor(float(a.shape[0]))
    with atomic_write(Path(path)) as unfinished:
        save_file(state, unfinished, metadata={"format": "pt", **(metadata or {})})


def load_lora(
    transformer: FluxTransformer2DModel,
    path: str | Path,
    scale: float = 1.0,
    adapter_name: str = ADAPTER,
) -> None:
    """Attach the LoRA in `path` and activate it: W' = W + scale * B A.

    Raises ColorFluxError as `load_lora_state` does, and if the file is for another model.
    """
    state = load_lora_state(path)
    _matched_layers(state, transformer, path)  # Refuses a LoRA of another model.
    transformer.load_lora_adapter(state, prefix="transformer", adapter_name=adapter_name)
    transformer.set_adapters(adapter_name, scale)


@torch.no_grad()
def merge_lora(transformer: FluxTransformer2DModel, path: str | Path, scale: float = 1.0) -> None:
    """Add the LoRA in `path` to the weights themselves: W <- W + scale * B A, in float32.

    Raises ColorFluxError in the same cases as `load_lora`.
    """
    for layer, a, b in _matched_layers(load_lora_state(path), transformer, path):
        delta = scale * b.float() @ a.float()
        layer.weight.copy_(layer.weight.float() + delta.to(layer.weight.device))


def load_lora_state(path: str | Path) -> dict[str, Tensor]:
    """Read the LoRA in `path` and `normalise` it, with the alphas of diffusers' header if any.

    Raises ColorFluxError when the file cannot be read, is not a FLUX.1 LoRA, or has keys that would
    be ignored or NaN or infinite weights.
    """
    try:
        state = load_file(path)
        with safe_open(path, framework="pt") as file:
            header = json.loads((file.metadata() or {}).get("lora_adapter_metadata", "{}"))
    except (OSError, SafetensorError, json.JSONDecodeError) as error:
        raise ColorFluxError(f"Cannot read the LoRA {path}: {error}") from error
    try:
        return normalise(_header_alphas(state, header) | state)
    except ColorFluxError as error:
        raise ColorFluxError(f"The LoRA {path} cannot be used: {error}") from error


def normalise(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Convert a FLUX.1 LoRA to `transformer.<module>.lora_{A,B}.weight` pairs with scale 1.

    Formats: diffusers, peft (bare, `base_model.model.`, with an adapter name), and those that
    diffusers converts (kohya, xlabs). A missing alpha means alpha = rank; other alphas are
    multiplied into B.

    Raises ColorFluxError when a key would be ignored, A or B is missing, or a weight is not finite.
    """
    for key, tensor in state.items():
        if key.startswith(("lora_te", "text_encoder")) or "dora_scale" in key:
            raise ColorFluxError(f"{key} would be ignored; only plain FLUX.1 LoRAs can be read.")
        if not tensor.float().isfinite().all():
            raise ColorFluxError(f"{key} has NaN or infinite values.")
    if not any(".lora_A." in key for key in state):
        state = _converted(state)
    modules: dict[str, dict[str, Tensor]] = {}
    for key, tensor in state.items():
        match = _KEY.fullmatch(key)
        if match is None:
            raise ColorFluxError(f"{key} is not a LoRA weight of FLUX.1.")
        parts = modules.setdefault(match["module"], {})
        if parts.setdefault(match["half"] or "alpha", tensor) is not tensor:
            raise ColorFluxError(f"{match['module']} occurs twice, in two key styles.")
    result = {}
    for module, parts in modules.items():
        if not {"lora_A", "lora_B"} <= parts.keys():
            raise ColorFluxError(f"{module} has only {', '.join(parts)}; A and B are both needed.")
        a, b = parts["lora_A"], parts["lora_B"]
        if a.ndim != 2 or b.ndim != 2 or a.shape[0] != b.shape[1]:
            raise ColorFluxError(f"{module}: A {tuple(a.shape)}, B {tuple(b.shape)} do not match.")
        scale = parts["alpha"].item() / a.shape[0] if "alpha" in parts else 1
        if scale != 1:
            b = b.float() * scale
        result[f"transformer.{module}.lora_A.weight"] = a
        result[f"transformer.{module}.lora_B.weight"] = b
    if not result:
        raise ColorFluxError("the file has no weights.")
    return result


def _converted(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    try:
        return FluxLoraLoaderMixin.lora_state_dict(dict(state))
    except (ValueError, KeyError, AssertionError, RuntimeError) as error:
        reason = shorten(str(error), 200)  # It may have a line for every key.
        raise ColorFluxError(f"diffusers does not know this LoRA format ({reason}).") from error


def _header_alphas(state: Mapping[str, Tensor], header: Mapping[str, Any]) -> dict[str, Tensor]:
    """The `.alpha` tensors for the alphas that diffusers stores in the file's header."""
    config = {key.removeprefix("transformer."): value for key, value in header.items()}
    if "lora_alpha" not in config:
        return {}
    if config.get("use_rslora"):
        raise ColorFluxError("rank-stabilised LoRAs (use_rslora) are not supported.")
    patterns = config.get("alpha_pattern") or {}
    modules = (key.removesuffix(_A) for key in state if key.endswith(_A))
    return {
        f"{module}.alpha": torch.tensor(
            float(patterns.get(get_pattern_key(patterns, module), config["lora_alpha"]))
        )
        for module in modules
    }


def _pairs(state: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor, Tensor]]:
    """(module, A, B) of a normalised state."""
    for key, a in state.items():
        if key.endswith(_A):
            stem = key.removesuffix(_A)
            yield stem.removeprefix("transformer."), a, state[f"{stem}.lora_B.weight"]


def _matched_layers(
    state: Mapping[str, Tensor], transformer: FluxTransformer2DModel, path: str | Path
) -> list[tuple[nn.Linear, Tensor, Tensor]]:
    """(layer, A, B) for all pairs; rejects those that diffusers would skip or adapt layers for."""
    linear = {
        name.removesuffix(".base_layer"): layer
        for name, layer in transformer.named_modules()
        if isinstance(layer, nn.Linear)
    }
    layers = []
    for module, a, b in _pairs(state):
        if module not in linear:
            raise ColorFluxError(f"The LoRA {path} is for another model: no layer {module} here.")
        layer = linear[module]
        given, expected = (b.shape[0], a.shape[1]), (layer.out_features, layer.in_features)
        if given != expected:
            raise ColorFluxError(
                f"The LoRA {path} is for another model: at {module} it is {given[0]}x{given[1]}, "
                f"this model is {expected[0]}x{expected[1]}."
            )
        layers.append((layer, a, b))
    return layers
