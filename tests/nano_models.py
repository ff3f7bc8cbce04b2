"""Whole pipelines of the real classes, tiny, with the same random weights on every call."""

from __future__ import annotations

from typing import Literal

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, FluxControlNetModel
from diffusers.pipelines.flux.modeling_flux import ReduxImageEncoder
from torch import nn
from transformers import SiglipVisionConfig, SiglipVisionModel

from colorflux_core.bundles.components import FLUX_SCHEDULE, SiglipImageProcessor
from colorflux_core.lite_vision import LiteVisionConfig, LiteVisionModel
from colorflux_core.model.pipeline import ColorFluxPipeline
from tests.flux_models import tiny_transformer, tiny_vae

SIGLIP = {
    "hidden_size": 24,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 32,
    "patch_size": 8,
}


def tiny_siglip() -> SiglipVisionModel:
    """Sixteen tokens of width 24."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return SiglipVisionModel(SiglipVisionConfig(**SIGLIP)).eval()


def tiny_lite_tower() -> LiteVisionModel:
    """The real one, which is small: four tokens of width 1808."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return LiteVisionModel(LiteVisionConfig(image_size=64)).eval()


def tiny_controlnet(num_mode: int | None = None, **changes: int | bool) -> FluxControlNetModel:
    """As if it had been trained: its projections are not zero."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        options = {
            "num_layers": 1,
            "num_single_layers": 2,
            "num_attention_heads": 1,
            "joint_attention_dim": 32,
            "pooled_projection_dim": 16,
            "guidance_embeds": True,
        }
        controlnet = FluxControlNetModel(num_mode=num_mode, **{**options, **changes})
        for name, parameter in controlnet.named_parameters():
            if name.startswith("controlnet_"):
                nn.init.normal_(parameter, std=0.1)
        return controlnet.eval()


def tiny_pipeline(
    tower: Literal["siglip", "lite"] = "siglip", controlnet: FluxControlNetModel | None = None
) -> ColorFluxPipeline:
    """Two double and four single blocks, one head; no progress bar."""
    encoder = tiny_siglip() if tower == "siglip" else tiny_lite_tower()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        redux = ReduxImageEncoder(redux_dim=encoder.config.hidden_size, txt_in_features=32)
    size = encoder.config.image_size
    pipeline = ColorFluxPipeline(
        transformer=tiny_transformer().eval(),
        vae=tiny_vae().eval(),
        controlnet=controlnet or tiny_controlnet(),
        image_encoder=encoder,
        image_embedder=redux,
        feature_extractor=SiglipImageProcessor(size={"height": size, "width": size}),
        scheduler=FlowMatchEulerDiscreteScheduler(**FLUX_SCHEDULE),
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline
