"""The interface to a judge model, implemented by an API endpoint and by a local model."""

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

Chat = Callable[[Sequence[Turn]], Awaitable[str]]
"""Sends a conversation to the model and returns its reply.

Raises NoVerdict if this request failed, and any other ColorFluxError if all requests would fail.
"""


class NoVerdict(ColorFluxError):
    """Explains why one image has no scores."""


class NoReply(NoVerdict):
    """The model did not reply."""


class Backend(Protocol):
    """A judge model. Equal ``model`` and ``settings`` must give equal replies."""

    @property
    def model(self) -> str:
        """The model's name, part of the cache key."""

    @property
    def settings(self) -> Mapping[str, object]:
        """All other settings that affect the reply; also part of the cache key."""

    def session(self) -> AbstractAsyncContextManager[Chat]:
        """Open a connection for several conversations."""


def load_image(path: Path, max_pixels: int) -> Image.Image:
    """Load an RGB image and shrink it to at most ``max_pixels`` pixels.

    Raises:
        NoVerdict: if the file cannot be read.
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
