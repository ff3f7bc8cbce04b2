"""S3Diff Restore: a scan without its noise and blur."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import TYPE_CHECKING, get_args

import torch
from comfy_api.latest import io
from torch import Tensor

from ..colorflux_core.errors import ColorFluxError
from ..colorflux_core.s3diff.options import MULTIPLE, SMALLEST_TILE, ColorFix, Restoration
from .layout import from_image, in_range, to_image
from .load_s3diff import S3DiffType
from .schema import schema

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
                    default=Restoration.scale,
                    min=1.0,
                    max=4.0,
                    step=0.25,
                    tooltip="Size of the result over the scan's. S3Diff was trained at 4.",
                ),
                io.Int.Input(
                    "tile",
                    default=Restoration.tile,
                    min=SMALLEST_TILE,
                    max=4096,
                    step=MULTIPLE,
                    tooltip="Side of a tile in pixels. Smaller takes less memory and more time; "
                    "when memory runs out, half of it is tried.",
                ),
                io.Combo.Input(
                    "color_fix",
                    options=list(get_args(ColorFix)),
                    default=Restoration.color_fix,
                    tooltip="How the scan's own colors are taken over. wavelet: all that is "
                    "coarser than 32 pixels. adain: each channel's mean and spread.",
                ),
                io.Boolean.Input(
                    "gray",
                    default=True,
                    tooltip="Make the result gray, as for a colorization: SD-Turbo can tint.",
                ),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=2**64 - 1,
                    control_after_generate=False,
                    tooltip="Of the noise in the latents.",
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

        photos = from_image(image, "S3Diff Restore: image")
        options = Restoration(scale, tile, color_fix=color_fix, gray=gray, seed=seed)
        mm.load_models_gpu([s3diff], memory_required=_memory(tile), force_full_load=True)
        while True:
            try:
                return io.NodeOutput(to_image(_each(s3diff, photos, options)))
            except mm.OOM_EXCEPTION as error:
                smaller = options.tile // 2 // MULTIPLE * MULTIPLE
                if smaller < SMALLEST_TILE:
                    raise ColorFluxError(
                        "S3Diff Restore: there is not enough memory even for the smallest tiles: "
                        "close other programs, or set scale to 1."
                    ) from error
            logger.warning("Out of memory with tiles of %d: trying %d.", options.tile, smaller)
            options = replace(options, tile=smaller)
            mm.soft_empty_cache()


def _each(s3diff: ModelPatcher, photos: Tensor, options: Restoration) -> Tensor:
    """All photos, one after another, with progress and Cancel by tile."""
    import comfy.utils

    from ..colorflux_core.s3diff.restorer import restore

    progress = comfy.utils.ProgressBar(len(photos))
    restored = []
    for i, photo in enumerate(photos.split(1)):

        def report(done: int, tiles: int, before: int = i) -> None:
            progress.update_absolute(before * tiles + done, len(photos) * tiles)

        restored.append(restore(s3diff.model, in_range(photo), options, report))
    return torch.cat(restored)


def _memory(tile: int) -> int:
    """Bytes that a tile takes in the widest layers of the VAE, generously."""
    return 4 * 512 * tile * tile * 4
