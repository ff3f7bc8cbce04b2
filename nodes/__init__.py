"""The ComfyUI nodes: each a schema, one call into ``colorflux_core`` and the tensor layout.

What takes long to import (diffusers, transformers, peft) is imported when a node first runs, so
that ComfyUI starts as fast as without the pack.
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

# People's workflows name nodes, inputs, options and the order of outputs. They load for ever: none
# of these changes its meaning or goes away; what is replaced is deprecated and stays.
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
    """What ComfyUI loads."""

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        # Here, since ComfyUI 0.3.64 never calls on_load.
        add_bundle_folder()
        add_s3diff_folder()
        return NODES
