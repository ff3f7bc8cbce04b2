"""Contact sheets, made of pictures beside and below each other and of labels."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import suppress

from PIL import Image, ImageDraw, ImageFont


def beside(pictures: Sequence[Image.Image], gap: int = 0) -> Image.Image:
    """The pictures from left to right on white, ``gap`` pixels apart, aligned at the top."""
    size = _total((p.width for p in pictures), gap), max(picture.height for picture in pictures)
    sheet, left = Image.new("RGB", size, "white"), 0
    for picture in pictures:
        sheet.paste(picture, (left, 0))
        left += picture.width + gap
    return sheet


def below(pictures: Sequence[Image.Image], gap: int = 0) -> Image.Image:
    """The pictures from top to bottom on white, ``gap`` pixels apart, aligned at the left."""
    size = max(picture.width for picture in pictures), _total((p.height for p in pictures), gap)
    sheet, top = Image.new("RGB", size, "white"), 0
    for picture in pictures:
        sheet.paste(picture, (0, top))
        top += picture.height + gap
    return sheet


def cell(picture: Image.Image | None, width: int, height: int) -> Image.Image:
    """A white cell with the picture, if any, in its centre."""
    whole = Image.new("RGB", (width, height), "white")
    if picture is not None:
        whole.paste(picture, ((width - picture.width) // 2, (height - picture.height) // 2))
    return whole


def label(
    text: str, width: int, height: int, color: str = "black", background: str = "white"
) -> Image.Image:
    """One line of text, shortened with an ellipsis if it is too wide."""
    strip = Image.new("RGB", (width, height), background)
    draw, font, text = ImageDraw.Draw(strip), _font(), " ".join(text.split())
    while text and draw.textlength(text, font) > width:
        text = text[:-2] + "…" if len(text) > 2 else ""
    draw.text((0, height // 2), text, fill=color, font=font, anchor="lm")
    return strip


def _total(sides: Iterable[int], gap: int) -> int:
    """The length of sides with gaps between them."""
    lengths = [*sides]
    return sum(lengths) + gap * (len(lengths) - 1)


def _font() -> ImageFont.ImageFont | ImageFont.FreeTypeFont:
    """A font of the system if there is one: Pillow's own has only English letters."""
    for name in ("DejaVuSans.ttf", "Arial.ttf", "arial.ttf"):
        with suppress(OSError):
            return ImageFont.truetype(name, 15)
    return ImageFont.load_default(15)
