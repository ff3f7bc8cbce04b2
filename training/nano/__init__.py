"""Nano's own base models: vision tower, VAE, FLUX and Redux."""
