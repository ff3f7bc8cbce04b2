"""Compare Photos: before and after under a slider; the widget is in web/js/compare.js."""

from __future__ import annotations

import nodes  # ComfyUI's own module, not this package.
from comfy_api.latest import io
from torch import Tensor

from .layout import from_image, in_range, to_image
from .schema import schema


class ComparePhotos(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="ColorFlux_Compare",
            display_name="Compare Photos",
            description="Shows two pictures under one slider: drag it to see before and after.",
            search_aliases=["before after", "image compare", "slider"],
            inputs=[
                io.Image.Input("before", tooltip="The picture on the left, usually the original."),
                io.Image.Input("after", tooltip="The picture on the right, in color."),
            ],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, before: Tensor, after: Tensor) -> io.NodeOutput:
        return io.NodeOutput(
            ui={"a_images": _preview(before, "before"), "b_images": _preview(after, "after")}
        )


def _preview(image: Tensor, name: str) -> list[dict[str, str]]:
    picture = to_image(in_range(from_image(image, f"Compare Photos: {name}")))
    return nodes.PreviewImage().save_images(picture, f"ColorFLUX.{name}")["ui"]["images"]
