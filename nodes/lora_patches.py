"""Applies a LoRA to a MODEL; rejects files that would load only partially."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import comfy.lora
import comfy.model_base
import comfy.utils
from comfy.model_patcher import ModelPatcher

from ..colorflux_core.errors import ColorFluxError
from ..colorflux_core.model.lora import load_lora_state


def with_lora(model: ModelPatcher, path: Path, strength: float, where: str) -> ModelPatcher:
    """The MODEL with W' = W + strength * B A; unchanged at strength 0.

    Args:
        model: FLUX.1, in any of ComfyUI's formats.
        path: A LoRA in one of the key styles that ``colorflux_core.model.lora.normalise`` reads.
        strength: May be negative.
        where: Node and input, for error messages.

    Raises:
        ColorFluxError: if the model is not FLUX.1, or the LoRA is damaged or for another model.
    """
    if not isinstance(model.model, comfy.model_base.Flux):
        raise ColorFluxError(
            f"{where} is {type(model.model).__name__}, not FLUX.1: connect a FLUX.1 model."
        )
    if strength == 0:
        return model
    try:
        state = load_lora_state(path)
    except ColorFluxError as error:
        raise ColorFluxError(f"{where}: {error}") from error
    targets = comfy.lora.model_lora_keys_unet(model.model, {})
    for key, down in state.items():
        if not key.endswith(".lora_A.weight"):
            continue
        layer = key.removesuffix(".lora_A.weight")
        if layer not in targets:
            raise ColorFluxError(
                f"{where}: {path.name} is for another model: this one has no layer {layer}."
            )
        up = state[f"{layer}.lora_B.weight"]
        given, expected = (up.shape[0], down.shape[1]), _shape(model, targets[layer])
        if given != expected:
            raise ColorFluxError(
                f"{where}: {path.name} is for another model: its {layer} is {given[0]}x{given[1]}, "
                f"this model's is {expected[0]}x{expected[1]}."
            )
    patched = model.clone()
    patched.add_patches(comfy.lora.load_lora(state, targets), strength)
    return patched


def _shape(model: ModelPatcher, target: str | tuple[Any, ...]) -> tuple[int, int]:
    """(out, in) of a layer; in ComfyUI, q, k and v are the thirds of one layer."""
    key, part, *_ = (target, None) if isinstance(target, str) else target
    height, width = comfy.utils.get_attr(model.model, key).shape
    return (part[2] if part else height), width
