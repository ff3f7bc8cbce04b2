"""The models of a training run: loading, memory, devices, saving."""
