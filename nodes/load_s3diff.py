"""Load S3Diff: SD-Turbo with what S3Diff adds to it."""

from __future__ import annotations

from pathlib import Path

import folder_paths
from comfy_api.latest import io

from .schema import schema

KIND = "s3diff"
S3DiffType = io.Custom("COLORFLUX_S3DIFF")


def add_s3diff_folder() -> None:
    """Tell ComfyUI of models/s3diff."""
    folder_paths.add_model_folder_path(KIND, str(Path(folder_paths.models_dir, KIND)))


class LoadS3Diff(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="ColorFlux_LoadS3Diff",
            display_name="Load S3Diff",
            description="The restorer that cleans a scan before it is colorized.",
            search_aliases=["restore", "super resolution", "denoise", "upscale"],
            inputs=[
                io.Combo.Input(
                    "s3diff",
                    options=folder_paths.get_filename_list(KIND),
                    tooltip="A file in models/s3diff that python -m colorflux_core.s3diff.convert "
                    "made of the published weights.",
                ),
                io.Combo.Input(
                    "sd_turbo",
                    options=folder_paths.get_filename_list("checkpoints"),
                    tooltip="sd_turbo.safetensors in models/checkpoints.",
                ),
            ],
            outputs=[S3DiffType.Output(display_name="s3diff", tooltip="For S3Diff Restore.")],
        )

    @classmethod
    def execute(cls, s3diff: str, sd_turbo: str) -> io.NodeOutput:
        import comfy.model_management as mm
        from comfy.model_patcher import ModelPatcher

        from ..colorflux_core.s3diff.checkpoint import load_s3diff

        device = mm.get_torch_device()
        model = load_s3diff(
            Path(folder_paths.get_full_path_or_raise(KIND, s3diff)),
            Path(folder_paths.get_full_path_or_raise("checkpoints", sd_turbo)),
            dtype=mm.unet_dtype(device),
        )
        return io.NodeOutput(ModelPatcher(model, device, mm.unet_offload_device()))
