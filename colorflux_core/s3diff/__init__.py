"""S3Diff: a scan without its noise and blur, in one step of SD-Turbo (Zhang et al. 2024).

A small network estimates how blurred and how noisy the scan is (``degradation``). The estimate
becomes, for each stage of SD-Turbo's encoder and UNet, a small matrix (``modulation``) in the
middle of that stage's LoRA (``modulated_lora``); the UNet takes a single step (``model``), large
scans go through it in tiles (``restorer``).
"""
