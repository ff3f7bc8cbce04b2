"""Sample Old Photo: photos to try the workflows with."""

from __future__ import annotations

from pathlib import Path

from comfy_api.latest import io

from ..colorflux_core.photos.color import unit_range
from ..colorflux_core.photos.photo import is_photo_file, load_photo
from .layout import to_image
from .schema import schema

FOLDER = Path(__file__).resolve().parent.parent / "docs" / "photos" / "old"


class SamplePhoto(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        photos = sorted(path.name for path in FOLDER.iterdir() if is_photo_file(path))
        return schema(
            node_id="ColorFlux_SamplePhoto",
            display_name="Sample Old Photo",
            description="One of the old photos (CC0) that come with ColorFLUX. "
            "Put Load Image in its place for your own.",
            search_aliases=["example photo", "demo image"],
            inputs=[
                io.Combo.Input(
                    "photo",
                    options=photos,
                    default="stdlib_nagasaki-boats.jpg",
                    tooltip="Which one.",
                )
            ],
            outputs=[io.Image.Output(display_name="image", tooltip="The photo as it was scanned.")],
        )

    @classmethod
    def execute(cls, photo: str) -> io.NodeOutput:
        return io.NodeOutput(to_image(unit_range(load_photo(FOLDER / photo).pixels)[None]))
