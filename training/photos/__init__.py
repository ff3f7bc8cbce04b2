"""``training.prepare``: finding, measuring and choosing photos."""
