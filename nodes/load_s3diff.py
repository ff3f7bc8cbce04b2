"""The node Load S3Diff: loads SD-Turbo with S3Diff's weights."""

from __future__ import annotations

from pathlib import Path

import folder_paths
import torch
from comfy_api.latest import io

from ..colorflux_core.errors import ColorFluxError
from .schema import schema

KIND, SD_TURBO_KIND = "s3diff", "checkpoints"
S3DiffType = io.Custom("COLORFLUX_S3DIFF")


def add_s3diff_folder() -> None:
    """Register models/s3diff; extra_model_paths.yaml can add folders under ``s3diff``."""
    folder_paths.add_model_folder_path(KIND, str(Path(folder_paths.models_dir, KIND)))
    # Without a suffix, ComfyUI would also list the published pickles.
    _, suffixes = folder_paths.folder_names_and_paths[KIND]
    suffixes.add(".safetensors")


class LoadS3Diff(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        # If a folder is empty, list the expected file, so that execution can report where to get
        # it. Without any option, ComfyUI would only report a missing input.
        return schema(
            node_id="ColorFlux_LoadS3Diff",
            display_name="Load S3Diff",
            description="The restorer that takes noise and blur from a scan before it is "
            "colorized: SD-Turbo, and what S3Diff adds to it.",
            search_aliases=["restore", "super resolution", "denoise", "upscale"],
            inputs=[
                io.Combo.Input(
                    "s3diff",
                    options=folder_paths.get_filename_list(KIND) or ["s3diff.safetensors"],
                    tooltip="A file in models/s3diff, which python -m "
                    "colorflux_core.s3diff.convert makes of the published s3diff.pkl and "
                    "de_net.pth.",
                ),
                io.Combo.Input(
                    "sd_turbo",
                    options=folder_paths.get_filename_list(SD_TURBO_KIND)
                    or ["sd_turbo.safetensors"],
                    tooltip="sd_turbo.safetensors in models/checkpoints.",
                ),
            ],
            outputs=[S3DiffType.Output(display_name="s3diff", tooltip="For S3Diff Restore.")],
        )

    @classmethod
    def fingerprint_inputs(cls, s3diff: str, sd_turbo: str) -> list[int]:
        """Reload files whose modification time has changed."""
        return [path.stat().st_mtime_ns for path in _paths(s3diff, sd_turbo)]

    @classmethod
    def execute(cls, s3diff: str, sd_turbo: str) -> io.NodeOutput:
        import comfy.model_management as mm
        from comfy.model_patcher import ModelPatcher

        from ..colorflux_core.s3diff.checkpoint import load_s3diff

        checkpoint, base = _paths(s3diff, sd_turbo)
        device = mm.get_torch_device()
        # Not ComfyUI's unet_dtype, which assumes that weights are cast on use.
        dtype = torch.float16 if mm.should_use_fp16(device) else torch.float32
        try:
            model = load_s3diff(checkpoint, base, dtype=dtype)
        except ColorFluxError as error:
            raise ColorFluxError(f"Load S3Diff: {error}") from error
        return io.NodeOutput(ModelPatcher(model, device, mm.unet_offload_device()))


def _paths(s3diff: str, sd_turbo: str) -> tuple[Path, Path]:
    return (
        _path(
            KIND,
            s3diff,
            "create it with python -m colorflux_core.s3diff.convert from s3diff.pkl and de_net.pth "
            "(huggingface.co/zhangap/S3Diff)",
        ),
        _path(SD_TURBO_KIND, sd_turbo, "download it from huggingface.co/stabilityai/sd-turbo"),
    )


def _path(kind: str, name: str, source: str) -> Path:
    path = folder_paths.get_full_path(kind, name)
    if path is None:
        raise ColorFluxError(f"Load S3Diff: models/{kind} has no {name}; {source}.")
    return Path(path)
