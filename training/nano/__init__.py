"""The parts of nano that FLUX.1-dev's users download: vision tower, VAE, base FLUX and Redux."""
