"""Saves trained parts in the format of stock diffusers or transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from colorflux_core.bundles.components import (
    DIFFUSERS_MODELS,
    VISION_TOWERS,
)

from .parallel import devices, gather_to_main


def save_model(name: str, model: Any, folder: Path) -> None:
    """Write a trained part to ``folder/name``, in one file, as diffusers or transformers does.

    All processes must call it; the main one writes.
    """
    weights = {name: gather_to_main(tensor) for name, tensor in model.state_dict().items()}
    if not devices().is_main_process:
        return
    with torch.device("meta"):
        if name in DIFFUSERS_MODELS:
            # from_config would reset the values listed here to the class's defaults.
            config = {k: v for k, v in model.config.items() if k != "_use_default_values"}
            copy = DIFFUSERS_MODELS[name].from_config(config)
        else:
            copy = VISION_TOWERS[model.config.model_type](model.config)
    copy.load_state_dict(weights, assign=True)
    copy.save_pretrained(folder / name, max_shard_size="100GB")
