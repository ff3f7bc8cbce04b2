"""The exception for errors that users can fix."""


class ColorFluxError(Exception):
    """Its message says what failed, on which file, and which file, node or flag fixes it."""
