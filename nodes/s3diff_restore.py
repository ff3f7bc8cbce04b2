"""The node S3Diff Restore: removes noise and blur from scans."""

from __future__ import annotations

import itertools
import logging
from dataclasses import replace
from typing import TYPE_CHECKING, get_args

import torch
from comfy_api.latest import io
from torch import Tensor

from ..colorflux_core.errors import ColorFluxError
from ..colorflux_core.s3diff.options import MULTIPLE, SMALLEST_TILE, ColorFix, Restoration
from .layout import each_frame, from_image, to_image
from .load_s3diff import S3DiffType
from .schema import from_setting, schema, tooltip

if TYPE_CHECKING:
    from comfy.model_patcher import ModelPatcher

logger = logging.getLogger(__name__)


class S3DiffRestore(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="ColorFlux_S3DiffRestore",
            display_name="S3Diff Restore",
            description="Removes noise and blur from old photos, in one step of SD-Turbo.",
            search_aliases=["restore photo", "denoise", "deblur", "upscale"],
            inputs=[
                S3DiffType.Input("s3diff", tooltip="From Load S3Diff."),
                io.Image.Input("image", tooltip="The scan, or a batch of frames. Any size."),
                io.Float.Input(
                    "scale",
                    **from_setting(Restoration, "scale", step=0.25),
                ),
                io.Int.Input(
                    "tile",
                    **from_setting(
                        Restoration,
                        "tile",
                        max=4096,
                        tooltip=f"{tooltip(Restoration, 'tile')} When memory runs out, half of it "
                        "is tried.",
                    ),
                ),
                io.Combo.Input(
                    "color_fix",
                    options=list(get_args(ColorFix)),
                    default=Restoration.color_fix,
                    tooltip=tooltip(Restoration, "color_fix"),
                ),
                io.Boolean.Input(
                    "gray",
                    default=True,  # Here, colorization follows.
                    tooltip=tooltip(Restoration, "gray"),
                ),
                io.Int.Input(
                    "seed",
                    **from_setting(Restoration, "seed", control_after_generate=False),
                ),
            ],
            outputs=[io.Image.Output(display_name="restored", tooltip="At scale times the size.")],
        )

    @classmethod
    def execute(
        cls,
        s3diff: ModelPatcher,
        image: Tensor,
        scale: float,
        tile: int,
        color_fix: ColorFix,
        gray: bool,
        seed: int,
    ) -> io.NodeOutput:
        import comfy.model_management as mm
        import comfy.utils

        from ..colorflux_core.s3diff.restorer import restore

        photos = from_image(image, "S3Diff Restore: image")
        options = Restoration(scale, tile, color_fix=color_fix, gray=gray, seed=seed)
        progress, count = comfy.utils.ProgressBar(len(photos)), itertools.count()
        memory = _memory(photos, options, s3diff.model.vae.dtype)
        mm.load_models_gpu([s3diff], memory_required=memory, force_full_load=True)

        def restored(photo: Tensor) -> Tensor:
            nonlocal options
            before = next(count)

            def on_tile(done: int, tiles: int) -> None:
                progress.update_absolute(before * tiles + done, len(photos) * tiles)

            while True:
                try:
                    return to_image(restore(s3diff.model, photo.cpu(), options, on_tile))
                except mm.OOM_EXCEPTION:
                    options = _with_smaller_tile(options)
                mm.soft_empty_cache()

        return io.NodeOutput(each_frame(restored, photos))


def _with_smaller_tile(options: Restoration) -> Restoration:
    """Options with half the tile size. Raises ColorFluxError at the smallest size."""
    if options.tile == SMALLEST_TILE:
        raise ColorFluxError(
            f"S3Diff Restore: tile: not enough memory even for the smallest tile, {SMALLEST_TILE}: "
            "close other programs, or start ComfyUI with --cpu."
        )
    smaller = max(options.tile // 2 // MULTIPLE * MULTIPLE, SMALLEST_TILE)
    logger.warning("S3Diff Restore: out of memory with tile %d, trying %d.", options.tile, smaller)
    return replace(options, tile=smaller)


def _memory(photos: Tensor, options: Restoration, dtype: torch.dtype) -> int:
    """Memory for a tile in bytes, estimated as ComfyUI does for decoding with this VAE."""
    height, width = (min(options.tile, options.scale * side) for side in photos.shape[-2:])
    return int(2178 * height * width * dtype.itemsize)
