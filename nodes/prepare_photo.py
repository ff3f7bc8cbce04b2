"""Prepare Photo: resizes a photo to the model's canvas and converts it to grayscale."""

from __future__ import annotations

import torch
from comfy_api.latest import io
from torch import Tensor

from ..colorflux_core.photos.canvas import Canvas
from ..colorflux_core.photos.color import grayscale
from ..colorflux_core.photos.resize import Resizing
from .layout import each_frame, from_image, to_image
from .schema import from_setting, schema, tooltip


class PreparePhoto(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="ColorFlux_PreparePhoto",
            display_name="Prepare Photo",
            description="Resizes a photo to the model's canvas and converts it to gray.",
            search_aliases=["grayscale", "black and white", "resize photo"],
            inputs=[
                io.Image.Input("image", tooltip="The photo, or a batch of frames. Any size."),
                io.Combo.Input(
                    "canvas",
                    options=["square", "aspect"],
                    default=Canvas.mode,
                    tooltip=tooltip(Canvas, "mode"),
                ),
                io.Int.Input(
                    "pixels",
                    **from_setting(
                        Canvas,
                        "pixels",
                        max=16384,
                        tooltip=f"{tooltip(Canvas, 'pixels')} FLUX.1 works at 1024; for a bundle, "
                        "connect its canvas_pixels.",
                    ),
                ),
            ],
            outputs=[
                io.Image.Output(
                    display_name="gray", tooltip="The gray photo, for the prompt and ControlNet."
                ),
                io.Latent.Output(
                    display_name="latent", tooltip="Empty latents of that size, one for each photo."
                ),
                io.Int.Output(display_name="width", tooltip="For ModelSamplingFlux."),
                io.Int.Output(display_name="height", tooltip="For ModelSamplingFlux."),
            ],
        )

    @classmethod
    def execute(cls, image: Tensor, canvas: str, pixels: int) -> io.NodeOutput:
        photos = from_image(image, "Prepare Photo: image")
        resizing = Resizing.onto(Canvas(canvas, pixels), (photos.shape[-2], photos.shape[-1]))
        gray = each_frame(
            lambda photo: to_image(grayscale(resizing.to_canvas(photo))),
            photos,
        )
        height, width = resizing.canvas
        latents = torch.zeros(len(photos), 16, height // 8, width // 8)
        return io.NodeOutput(gray, {"samples": latents}, width, height)
