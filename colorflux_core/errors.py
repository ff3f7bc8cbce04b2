"""The one exception that users are meant to read."""


class ColorFluxError(Exception):
    """Says what went wrong, where, and which file, node or flag mends it."""
