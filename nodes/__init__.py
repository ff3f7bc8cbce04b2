"""The ComfyUI nodes: each has a schema, calls ``colorflux_core`` once and converts tensor layouts.

Slow imports (diffusers, transformers, peft) happen when a node first runs, so that the pack does
not slow down ComfyUI's start.
"""

from __future__ import annotations

from comfy_api.latest import ComfyExtension, io

from .bundles import add_bundle_folder
from .compare import ComparePhotos
from .gray_controlnet import ApplyGrayControlNet
from .load_bundle import LoadBundle
from .load_s3diff import LoadS3Diff, add_s3diff_folder
from .prepare_photo import PreparePhoto
from .pro_dpo_lora import LoadProDPOLoRA
from .redux_visual_prompt import ReduxVisualPrompt
from .resize_back import ResizeBack
from .s3diff_restore import S3DiffRestore
from .sample_photo import SamplePhoto

# Saved workflows refer to node ids, inputs, options and the order of outputs. To keep them loading,
# never remove any of these or change its meaning; deprecate what is replaced, and keep it.
NODES: list[type[io.ComfyNode]] = [
    LoadBundle,
    SamplePhoto,
    PreparePhoto,
    ReduxVisualPrompt,
    ApplyGrayControlNet,
    LoadProDPOLoRA,
    ResizeBack,
    ComparePhotos,
    LoadS3Diff,
    S3DiffRestore,
]


class ColorFluxExtension(ComfyExtension):
    """The pack as a ComfyUI extension."""

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        # Registered here because ComfyUI 0.3.64 never calls on_load.
        add_bundle_folder()
        add_s3diff_folder()
        return NODES
