"""Who replies: an endpoint or a local model. Both are asked in the same way."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Protocol

from PIL import Image

from ...errors import ColorFluxError
from ...photos.images import eight_bit
from ...photos.photo import load_photo
from .template import Turn

Ask = Callable[[Sequence[Turn]], Awaitable[str]]
"""The reply to a conversation.

Raises NoVerdict when there is none this time, any other ColorFluxError when there never will be.
"""


class NoVerdict(ColorFluxError):
    """Why one image has no scores."""


class Unanswered(NoVerdict):
    """No reply came."""


class Backend(Protocol):
    @property
    def model(self) -> str:
        """Which one it is."""

    @property
    def settings(self) -> Mapping[str, object]:
        """Whatever else the reply depends on."""

    def opened(self) -> AbstractAsyncContextManager[Ask]: ...


def shown(path: Path, max_pixels: int) -> Image.Image:
    """An image as judges see it: RGB, shrunk where it has more pixels.

    Raises NoVerdict when it cannot be read.
    """
    try:
        image = eight_bit(load_photo(path).pixels)
    except ColorFluxError as error:
        raise NoVerdict(str(error)) from error
    scale = math.sqrt(max_pixels / (image.width * image.height))
    if scale >= 1:
        return image
    width, height = (max(1, int(side * scale)) for side in image.size)
    return image.resize((width, height), Image.Resampling.LANCZOS)
