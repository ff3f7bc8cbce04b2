"""Resize Back: back to the original's size, with the original's fine detail."""

from __future__ import annotations

from comfy_api.latest import io
from torch import Tensor

from ..colorflux_core.errors import ColorFluxError
from ..colorflux_core.model.settings import Settings
from ..colorflux_core.photos.resize import Resizing
from .layout import each_frame, from_image, to_image
from .schema import from_setting, schema


class ResizeBack(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="ColorFlux_ResizeBack",
            display_name="Resize Back",
            description="Resizes the colorized photo back to the size of the original.",
            search_aliases=["restore size", "detail transfer"],
            inputs=[
                io.Image.Input("image", tooltip="The colorized photo, as the VAE decodes it."),
                io.Image.Input("original", tooltip="The photo as it was before Prepare Photo."),
                io.Float.Input(
                    "detail",
                    **from_setting(Settings, "detail", step=0.05),
                ),
            ],
            outputs=[io.Image.Output(display_name="colorized", tooltip="At the original's size.")],
        )

    @classmethod
    def execute(cls, image: Tensor, original: Tensor, detail: float) -> io.NodeOutput:
        colorized = from_image(image, "Resize Back: image")
        originals = from_image(original, "Resize Back: original")
        if len(originals) not in (1, len(colorized)):
            raise ColorFluxError(
                f"Resize Back: original has {len(originals)} photos for {len(colorized)} colorized "
                "ones: connect the IMAGE that went into Prepare Photo."
            )
        originals = originals.expand(len(colorized), -1, -1, -1)
        resizing = Resizing(
            (originals.shape[-2], originals.shape[-1]), (colorized.shape[-2], colorized.shape[-1])
        )

        def back(frame: Tensor, photo: Tensor) -> Tensor:
            return to_image(resizing.back(frame, photo, detail))

        return io.NodeOutput(each_frame(back, colorized, originals))
