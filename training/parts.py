"""The parts that a stage starts from, and what it encodes its photos into."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from diffusers import (
    FlowMatchEulerDiscreteScheduler,
    FluxControlNetModel,
    FluxTransformer2DModel,
)
from torch import Tensor, nn
from torch.nn import functional as F

from colorflux_core.components import (
    DIFFUSERS_MODELS,
    VISION_TOWERS,
    SiglipImageProcessor,
    load_feature_extractor,
    load_model,
    load_scheduler,
)
from colorflux_core.errors import ColorFluxError
from colorflux_core.flow import sample_timesteps
from colorflux_core.pipeline import ColorFluxPipeline
from colorflux_core.settings import Settings

from .config import LoopConfig, setting
from .data import Batch, Picture, read_manifest, views
from .memory import Held, blocks, checkpoint_blocks, compile_blocks, hold_frozen, offload_blocks
from .parallel import devices, gathered

FLUX_MODELS = (FluxTransformer2DModel, FluxControlNetModel)
PACKED = ("fp8", "nf4")
SAMPLES = 8


@dataclass
class PartsConfig(LoopConfig):
    base: Path = setting(Path("base"), "diffusers pipeline folder that the parts come from")
    controlnet: Path | None = setting(None, "the gray ControlNet, where it is not in --base")
    redux: Path | None = setting(None, "Redux, where it is not the image_embedder in --base")
    frozen: Held = setting("bfloat16", "how weights that do not learn are held")
    offload: bool = setting(
        False, "frozen blocks wait in the CPU's memory until they are needed", may_change=True
    )
    guidance: float = setting(Settings.guidance, "what a guidance-distilled FLUX is told", low=0)
    text_tokens: int = setting(Settings.text_tokens, "zero tokens before the visual prompt", low=0)
    timestep_density: Literal["logit_normal", "uniform"] = setting(
        "logit_normal", "how timesteps are drawn (the paper does not say)"
    )
    timestep_shift: float = setting(
        1.0, "above 1 moves the timesteps towards noise, as schedules at inference do", low=0.01
    )
    coarse_noise: float = setting(
        0.0,
        "standard deviation of noise added at each of the coarser scales: without it, coarse colors"
        " are read off the noise before the prompt is asked (blotches that are the seed's)",
        low=0,
        may_change=True,
    )
    fresh_views: bool = setting(
        False,
        "show a new random part of each photo in every step, for which the VAE and the vision tower"
        " stay loaded; --views is not used then",
    )
    old_photos: float = setting(
        0.0,
        "share of the gray photos that are made to look old: faded, blurred, grainy, scratched;"
        " needs --fresh_views",
        low=0,
        high=1,
    )
    plan: bool = setting(
        False, "print what would be loaded and the memory it takes, then stop", may_change=True
    )
    devices: int = setting(
        0,
        "devices that --plan is for; 0 takes those that it is launched on",
        low=0,
        may_change=True,
    )
    memory: float = setting(
        0.0,
        "GiB of the device that --plan is for; 0 takes this machine's GPU",
        low=0,
        may_change=True,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.precision == "no" and self.frozen != "float32":
            raise ColorFluxError(f"--frozen {self.frozen} needs --precision bf16 or fp16")
        if self.old_photos and not self.fresh_views:
            raise ColorFluxError("--old_photos needs --fresh_views")
        if self.shard and self.optimizer == "adamw8bit":
            raise ColorFluxError("--shard does not go with --optimizer adamw8bit: take adamw")

    @property
    def latent_size(self) -> tuple[int, int]:
        return self.canvas // 8, self.canvas // 8


class Parts:
    """The models of the base, each loaded when it is asked for.

    Without ``weights`` they are only their shapes, on the meta device: enough to plan with.
    """

    def __init__(self, config: PartsConfig, weights: bool = True) -> None:
        self.config, self.weights = config, weights
        self.device = devices().device if weights else torch.device("meta")

    def load(self, name: str, path: Path | None = None, dtype: torch.dtype | None = None) -> Any:
        """A model on the CPU, by default in float32 or in the half precision of ``--frozen``.

        Raises ColorFluxError, which names the flag, when it is missing or cannot be used.
        """
        flag, own = source(self.config, name)
        try:
            return load_model(name, path or own, dtype or held_type(self.config), self.weights)
        except ColorFluxError as error:
            raise ColorFluxError(error if path else f"--{flag} {own}: {error}") from error

    def frozen(self, name: str) -> Any:
        return self.freeze(self.load(name))

    def freeze(self, model: nn.Module) -> Any:
        return self.place(self.hold(model))

    def hold(self, model: nn.Module) -> Any:
        """The model with weights that do not learn, held as ``--frozen`` says."""
        how, device = self.config.frozen, self.device
        if not isinstance(model, FLUX_MODELS):
            how = "bfloat16" if how in PACKED else how
        elif self.config.offload and how not in PACKED:  # Packing is work for the device.
            device = torch.device("cpu")
        return hold_frozen(model, how, device)

    def place(self, model: nn.Module) -> Any:
        """The model on its device, as the flags about memory and speed say."""
        if self.config.gradient_checkpointing and blocks(model):
            checkpoint_blocks(model)
        if self.config.compile_blocks:
            compile_blocks(model)
        if self.config.offload and isinstance(model, FLUX_MODELS):
            offload_blocks(model, self.device)
        return model.to(self.device)

    def learning(self, model: nn.Module) -> Any:
        """The model on the device, all of it to be trained, in float32."""
        return self.place(model.float().requires_grad_(True))


def held_type(config: PartsConfig) -> torch.dtype:
    return torch.bfloat16 if config.frozen in PACKED else getattr(torch, config.frozen)


def source(config: PartsConfig, name: str) -> tuple[str, Path]:
    """The flag that a part comes from, and its value."""
    if name == "controlnet" and config.controlnet is not None:
        return "controlnet", config.controlnet
    if name == "image_embedder" and config.redux is not None:
        return "redux", config.redux
    return "base", config.base


def save_model(name: str, model: Any, folder: Path) -> None:
    """Write a trained part as stock diffusers or transformers has it, in one file.

    All devices must take part; one writes.
    """
    weights = {name: gathered(tensor) for name, tensor in model.state_dict().items()}
    if not devices().is_main_process:
        return
    with torch.device("meta"):
        if name in DIFFUSERS_MODELS:
            # What it calls defaults may not be: it takes what came without a name for one.
            config = {k: v for k, v in model.config.items() if k != "_use_default_values"}
            copy = DIFFUSERS_MODELS[name].from_config(config)
        else:
            copy = VISION_TOWERS[model.config.model_type](model.config)
    copy.load_state_dict(weights, assign=True)
    copy.save_pretrained(folder / name, max_shard_size="100GB")


def feature_extractor(config: PartsConfig) -> SiglipImageProcessor:
    return load_feature_extractor(config.base)


def pipeline(
    parts: Parts,
    scheduler: FlowMatchEulerDiscreteScheduler | None = None,
    **trained: nn.Module,
) -> ColorFluxPipeline:
    """The pipeline of the parts, with ``trained`` ones in their places."""
    names = ("transformer", "vae", "controlnet", "image_encoder", "image_embedder")
    whole = ColorFluxPipeline(
        **{name: trained.get(name) or parts.frozen(name) for name in names},
        feature_extractor=feature_extractor(parts.config),
        scheduler=scheduler or load_scheduler(parts.config.base),
    )
    whole.vae.enable_slicing()
    whole.set_progress_bar_config(disable=True)
    return whole


def pictures(config: LoopConfig, stage: str) -> list[Picture]:
    """Views of the training photos that a stage may use, as often as a pass shows them."""
    photos = read_manifest(config.manifest, config.photo_folder, "train", stage, repeated=True)
    fresh = isinstance(config, PartsConfig) and config.fresh_views
    return views(photos, config.canvas, 1 if fresh else config.views, config.view_seed)


def sample_pictures(config: LoopConfig, stage: str) -> list[Picture]:
    """The first photos of the validation split, whole."""
    photos = read_manifest(config.manifest, config.photo_folder, "validation", stage)
    return views(photos[:SAMPLES], config.canvas, 1, config.view_seed)


def with_noise(
    batch: Batch, photo: str, generators: list[torch.Generator], config: PartsConfig
) -> Batch:
    """The batch with the noise eps and the timesteps t of Eq. 1, for the column ``photo``."""
    rows = batch[photo]
    noise = torch.stack([draw_noise(rows.shape[1:], g, config) for g in generators])
    density, shift = config.timestep_density, config.timestep_shift
    t = torch.cat([sample_timesteps(1, g, density, shift) for g in generators])
    return {**batch, "noise": noise.to(rows.device), "t": t.to(rows.device)}


def draw_noise(shape: torch.Size, generator: torch.Generator, config: PartsConfig) -> Tensor:
    """Packed noise (L, C): white, and with ``--coarse_noise`` more at 2, 4, 8, ... tokens."""
    noise = torch.randn(shape, generator=generator)
    if config.coarse_noise:
        height, width = (n // 2 for n in config.latent_size)
        channels = shape[1] // 4  # A token holds 2 x 2 latents.
        scale = 2
        while scale <= 2 * max(height, width):
            grid = (1, channels, math.ceil(height / scale), math.ceil(width / scale))
            coarse = torch.randn(grid, generator=generator)
            coarse = F.interpolate(coarse, size=(height, width), mode="bilinear")
            tokens = coarse[0].flatten(1).T.repeat_interleave(4, dim=1)
            noise += config.coarse_noise * tokens
            scale *= 2
    return noise


def blank_batch(
    parts: Parts, rows: int, *, latents: tuple[str, ...] = (), tokens: tuple[str, ...] = ()
) -> Batch:
    """Zeros of the shapes that a loss is given, for plans: columns of both kinds, noise and t."""
    height, width = parts.config.latent_size
    length = height * width // 4
    batch = {name: torch.zeros(rows, length, 64) for name in (*latents, "noise")}
    if tokens:
        tower = Parts(parts.config, weights=False).load("image_encoder")
        size = tower.config.image_size
        seen = tower(pixel_values=torch.empty(1, 3, size, size, device="meta", dtype=tower.dtype))
        shape = (rows, *seen.last_hidden_state.shape[1:])
        batch |= {name: torch.zeros(shape, dtype=torch.bfloat16) for name in tokens}
    return batch | {"t": torch.zeros(rows)}
