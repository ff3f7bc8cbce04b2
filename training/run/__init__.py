"""One training run: the loop, its state, checkpoints, metrics and samples."""
