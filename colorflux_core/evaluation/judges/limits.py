"""Default limits of judge requests."""

ATTEMPTS = 3
"""Maximum requests per result, until a reply can be parsed."""

MAX_PIXELS = 1280 * 28 * 28
"""Images are shrunk to this many pixels: about 1 megapixel, 1280 image tokens of Qwen2.5-VL."""

MAX_TOKENS = 2048
"""Maximum length of a reply, in tokens."""

PATIENCE = 3
"""Consecutive requests without a reply after which the run stops."""

TIMEOUT = 120
"""Timeout of one request to a server, in seconds."""
