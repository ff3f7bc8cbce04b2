"""ColorFLUX: colorizes old photos with FLUX.1, a gray ControlNet, Redux and a Pro-DPO LoRA."""
