"""The model: FLUX.1 with a gray ControlNet, a Redux visual prompt and a Pro-DPO LoRA."""
