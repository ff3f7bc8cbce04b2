"""Prepare Photo: resizes a photo to the model's canvas and converts it to grayscale."""

from __future__ import annotations

import torch
from comfy_api.latest import io
from torch import Tensor

from ..colorflux_core.photos.color import grayscale
from ..colorflux_core.photos.resize import MULTIPLE, Canvas
from .layout import each_frame, from_image, to_image
from .schema import schema


class PreparePhoto(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="ColorFlux_PreparePhoto",
            display_name="Prepare Photo",
            description="Brings a photo to the size at which the model works, in gray.",
            search_aliases=["grayscale", "black and white", "resize photo"],
            inputs=[
                io.Image.Input("image", tooltip="The photo, or a batch of frames. Any size."),
                io.Combo.Input(
                    "canvas",
                    options=["square", "aspect"],
                    default=Canvas.mode,
                    tooltip="square, as in the paper: the photo is squashed and later stretched "
                    "back. aspect: the photo's own proportions at as many pixels.",
                ),
                io.Int.Input(
                    "pixels",
                    default=Canvas.pixels,
                    min=MULTIPLE,
                    max=16384,
                    step=MULTIPLE,
                    tooltip="Side of the square. FLUX.1 works at 1024; a bundle says its own "
                    "size at its output canvas_pixels.",
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
        resizing = Canvas(canvas, pixels).resizing((photos.shape[-2], photos.shape[-1]))
        gray = each_frame(
            lambda photo: to_image(grayscale(resizing.to_canvas(photo))),
            photos,
        )
        height, width = resizing.canvas
        latents = torch.zeros(len(photos), 16, height // 8, width // 8)
        return io.NodeOutput(gray, {"samples": latents}, width, height)
