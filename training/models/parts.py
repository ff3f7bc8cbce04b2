"""The models that a stage starts from: loading, freezing and memory format."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    FlowMatchEulerDiscreteScheduler,
    FluxControlNetModel,
    FluxTransformer2DModel,
)
from torch import nn

from colorflux_core.bundles.components import (
    SiglipImageProcessor,
    load_feature_extractor,
    load_model,
    load_scheduler,
)
from colorflux_core.errors import ColorFluxError
from colorflux_core.model.flow import TimestepDensity
from colorflux_core.model.pipeline import ColorFluxPipeline
from colorflux_core.model.settings import Settings
from colorflux_core.options import inherit, setting

from ..config import LOSS, MEMORY, MODEL, PLAN, LoopConfig
from .blocks import blocks
from .memory import (
    PACKED,
    WeightStorage,
    checkpoint_blocks,
    compile_blocks,
    offload_blocks,
    store_frozen,
)
from .parallel import devices

FLUX_MODELS = (FluxTransformer2DModel, FluxControlNetModel)


@dataclass
class PartsConfig(LoopConfig):
    base: Path = setting(
        Path("base"), "diffusers folder with the pretrained models", metavar="FOLDER", group=MODEL
    )
    controlnet: Path | None = setting(None, "the gray ControlNet, if not in --base", group=MODEL)
    redux: Path | None = setting(None, "Redux, if not --base's image_embedder", group=MODEL)
    guidance: float = inherit(Settings, "guidance", group=MODEL)
    text_tokens: int = inherit(Settings, "text_tokens", group=MODEL)
    timestep_density: TimestepDensity = setting(
        "logit_normal", "distribution of the timesteps, which the paper does not give", group=LOSS
    )
    frozen: WeightStorage = setting("bfloat16", "storage format of frozen weights", group=MEMORY)
    offload: bool = setting(
        False,
        "keep frozen blocks in CPU memory and copy each to the device when needed",
        group=MEMORY,
        may_change=True,
    )
    plan: bool = setting(
        False, "print what would be loaded and its memory, then stop", group=PLAN, may_change=True
    )
    devices: int = setting(
        0,
        "devices to plan for; 0 uses those of this launch",
        low=0,
        group=PLAN,
        may_change=True,
    )
    memory: float = setting(
        0.0,
        "GiB of each device to plan for; 0 uses this machine's GPU",
        low=0,
        group=PLAN,
        may_change=True,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.precision == "no" and self.frozen != "float32":
            raise ColorFluxError(f"--frozen {self.frozen} needs --precision bf16 or fp16")
        if self.shard and self.optimizer == "adamw8bit":
            raise ColorFluxError("--shard cannot be combined with --optimizer adamw8bit: use adamw")

    @property
    def latent_size(self) -> tuple[int, int]:
        return self.canvas // 8, self.canvas // 8


class Parts:
    """The models of the base, each loaded on request.

    With ``weights=False``, models are created on the meta device, with shapes only, for a plan.
    """

    def __init__(self, config: PartsConfig, weights: bool = True) -> None:
        self.config, self.weights = config, weights
        self.device = devices().device if weights else torch.device("meta")

    def load(self, name: str, path: Path | None = None, dtype: torch.dtype | None = None) -> Any:
        """Load a model on the CPU, by default in the dtype for ``--frozen``.

        Raises ColorFluxError, which names the flag, if it is missing or cannot be used.
        """
        flag, own = source(self.config, name)
        try:
            return load_model(name, path or own, dtype or storage_dtype(self.config), self.weights)
        except ColorFluxError as error:
            raise ColorFluxError(error if path else f"--{flag} {own}: {error}") from error

    def frozen(self, name: str) -> Any:
        """Load a model, frozen, on its device."""
        return self.freeze(self.load(name))

    def freeze(self, model: nn.Module) -> Any:
        """Freeze the model and move it to its device."""
        return self.to_device(self.store(model))

    def store(self, model: nn.Module) -> Any:
        """Freeze the model and convert its weights to the format of ``--frozen``."""
        storage, device = self.config.frozen, self.device
        if not isinstance(model, FLUX_MODELS):
            storage = "bfloat16" if storage in PACKED else storage
        elif self.config.offload and storage not in PACKED:  # Packing runs on the device.
            device = torch.device("cpu")
        return store_frozen(model, storage, device)

    def to_device(self, model: nn.Module) -> Any:
        """Move the model to its device, with checkpointing, compilation and offloading as set."""
        if self.config.gradient_checkpointing and blocks(model):
            checkpoint_blocks(model)
        if self.config.compile_blocks:
            compile_blocks(model)
        if self.config.offload and isinstance(model, FLUX_MODELS):
            offload_blocks(model, self.device)
        return model.to(self.device)

    def trained(self, model: nn.Module) -> Any:
        """Make the whole model trainable in float32 and move it to its device."""
        return self.to_device(model.float().requires_grad_(True))


def storage_dtype(config: PartsConfig) -> torch.dtype:
    """The dtype in which parts are loaded; fp8 and nf4 are packed from bfloat16."""
    return torch.bfloat16 if config.frozen in PACKED else getattr(torch, config.frozen)


def source(config: PartsConfig, name: str) -> tuple[str, Path]:
    """The flag that gives a part's location, and its value."""
    if name == "controlnet" and config.controlnet is not None:
        return "controlnet", config.controlnet
    if name == "image_embedder" and config.redux is not None:
        return "redux", config.redux
    return "base", config.base


def feature_extractor(config: PartsConfig) -> SiglipImageProcessor:
    return load_feature_extractor(config.base)


def pipeline(
    parts: Parts,
    scheduler: FlowMatchEulerDiscreteScheduler | None = None,
    **trained: nn.Module,
) -> ColorFluxPipeline:
    """The colorization pipeline for samples, with ``trained`` models in place of the base's."""
    names = ("transformer", "vae", "controlnet", "image_encoder", "image_embedder")
    complete = ColorFluxPipeline(
        **{name: trained.get(name) or parts.frozen(name) for name in names},
        feature_extractor=feature_extractor(parts.config),
        scheduler=scheduler or load_scheduler(parts.config.base),
    )
    complete.vae.enable_slicing()
    complete.set_progress_bar_config(disable=True)
    return complete
