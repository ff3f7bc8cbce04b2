"""``--plan``: the memory, steps and disk space that a run needs, without loading any weights."""
