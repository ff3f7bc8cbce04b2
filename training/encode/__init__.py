"""Latents and image tokens, encoded once and cached on disk."""
