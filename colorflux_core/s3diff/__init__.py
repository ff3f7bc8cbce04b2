"""S3Diff: removes noise and blur from scans in one step of SD-Turbo (Zhang et al. 2024).

A small network estimates how blurred and noisy the scan is (``degradation``). For each stage of
SD-Turbo's encoder and UNet, the estimate is mapped to a small matrix (``modulation``) between the
two factors of that stage's LoRA (``modulated_lora``). The UNet takes a single denoising step
(``model``). Large scans are processed in tiles (``restorer``).
"""
