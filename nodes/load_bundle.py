"""Load ColorFLUX Bundle: a complete model from one folder."""

from __future__ import annotations

import torch
from comfy_api.latest import io

from ..colorflux_core.bundles.bundle_config import CONFIG, open_bundle
from ..colorflux_core.model.settings import Settings
from .bundles import EMBEDDED, bundle_folder, bundle_folders
from .schema import from_setting, schema

WEIGHT_DTYPES = {
    "default": None,
    "fp8_e4m3fn": torch.float8_e4m3fn,
    "fp8_e4m3fn_fast": torch.float8_e4m3fn,
    "fp8_e5m2": torch.float8_e5m2,
}


class LoadBundle(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="ColorFlux_LoadBundle",
            display_name="Load ColorFLUX Bundle",
            description="A complete colorization model. nano comes with the pack and runs on any "
            "machine; others go to models/colorflux.",
            search_aliases=["colorize", "nano", "model loader"],
            inputs=[
                io.Combo.Input(
                    "bundle",
                    options=list(bundle_folders()),
                    default=EMBEDDED,
                    tooltip="A folder with a colorflux.json in models/colorflux, or nano.",
                ),
                io.Float.Input(
                    "lora_strength",
                    **from_setting(Settings, "lora_scale", min=-10.0, max=10.0, step=0.05),
                ),
                io.Combo.Input(
                    "weight_dtype",
                    options=list(WEIGHT_DTYPES),
                    default="default",
                    tooltip="Storage format of the diffusion model's weights: fp8 takes half the "
                    "memory and loses a little quality.",
                ),
            ],
            outputs=[
                io.Model.Output(display_name="model", tooltip="FLUX, with the bundle's LoRA."),
                io.ControlNet.Output(display_name="control_net", tooltip="The gray ControlNet."),
                io.StyleModel.Output(display_name="style_model", tooltip="Redux."),
                io.ClipVision.Output(display_name="clip_vision", tooltip="The vision tower."),
                io.Vae.Output(display_name="vae", tooltip="The VAE that belongs to this model."),
                io.Int.Output(
                    display_name="canvas_pixels",
                    tooltip="The size that the model was trained at, for Prepare Photo's pixels.",
                ),
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, bundle: str, **_: object) -> int:
        """Reload a bundle when its config file changes."""
        return (bundle_folder(bundle) / CONFIG).stat().st_mtime_ns

    @classmethod
    def execute(cls, bundle: str, lora_strength: float, weight_dtype: str) -> io.NodeOutput:
        from . import bundle_models
        from .lora_patches import with_lora

        files = open_bundle(bundle_folder(bundle))
        model = bundle_models.load_transformer(
            files.folder, WEIGHT_DTYPES[weight_dtype], fast=weight_dtype.endswith("_fast")
        )
        if files.lora is not None:
            model = with_lora(model, files.lora, lora_strength, "Load ColorFLUX Bundle: bundle")
        return io.NodeOutput(
            model,
            bundle_models.load_control_net(files.folder),
            bundle_models.load_style_model(files.folder, files.settings.text_tokens),
            bundle_models.load_clip_vision(files.folder),
            bundle_models.load_vae(files.folder),
            files.settings.canvas.pixels,
        )
