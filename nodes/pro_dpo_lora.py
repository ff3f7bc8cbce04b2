"""Load Pro-DPO LoRA: applies the fine-color LoRA to a FLUX.1 model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import folder_paths
from comfy_api.latest import io

from ..colorflux_core.model.settings import Settings
from .schema import from_setting, schema

if TYPE_CHECKING:
    from comfy.model_patcher import ModelPatcher


class LoadProDPOLoRA(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="ColorFlux_LoadProDPOLoRA",
            display_name="Load Pro-DPO LoRA",
            description="Loads the LoRA that restores brightness, contrast and saturation. "
            "Rejects files that would load only partially.",
            search_aliases=["lora", "dpo", "faded"],
            inputs=[
                io.Model.Input("model", tooltip="FLUX.1, before or after other LoRAs."),
                io.Combo.Input(
                    "lora",
                    options=folder_paths.get_filename_list("loras"),
                    tooltip="A file in models/loras, with the keys of diffusers, peft or kohya.",
                ),
                io.Float.Input(
                    "strength",
                    **from_setting(Settings, "lora_scale", min=-10.0, max=10.0, step=0.05),
                ),
            ],
            outputs=[io.Model.Output(display_name="model", tooltip="FLUX.1 with the LoRA.")],
        )

    @classmethod
    def execute(cls, model: ModelPatcher, lora: str, strength: float) -> io.NodeOutput:
        from .lora_patches import with_lora

        path = Path(folder_paths.get_full_path_or_raise("loras", lora))
        return io.NodeOutput(with_lora(model, path, strength, "Load Pro-DPO LoRA: model"))
