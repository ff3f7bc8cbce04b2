"""Map degrees of blur and noise to the matrices of the modulated LoRA (S3Diff, section 3.3)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

FREQUENCIES, EMBEDDING, HIDDEN = 64, 64, 256


class Modulator(nn.Module):
    """Predicts a rank x rank matrix M for each stage of a network from the degradation."""

    def __init__(self, stages: int, rank: int) -> None:
        super().__init__()
        self.de_mlp = nn.Sequential(nn.Linear(4 * FREQUENCIES, HIDDEN), nn.ReLU())
        self.block_mlp = nn.Sequential(nn.Linear(EMBEDDING, EMBEDDING), nn.ReLU())
        self.fuse_mlp = nn.Linear(HIDDEN + EMBEDDING, rank**2)
        self.block_embeddings = nn.Embedding(stages, EMBEDDING)
        self.rank = rank

    def forward(self, fourier: Tensor) -> Tensor:
        """Map :func:`fourier_features` (B, 256) to matrices (B, stages, rank, rank)."""
        stages = self.block_embeddings.num_embeddings
        degradation = self.de_mlp(fourier)[:, None].expand(-1, stages, -1)
        block = self.block_mlp(self.block_embeddings.weight).expand(len(fourier), -1, -1)
        fused = self.fuse_mlp(torch.cat([degradation, block], dim=-1))
        return fused.unflatten(-1, (self.rank, self.rank))


def fourier_features(degrees: Tensor, frequencies: Tensor) -> Tensor:
    """Sines and cosines (B, 256) of the degrees (B, 2) at the trained frequencies (64,)."""
    phase = 2 * math.pi * degrees[..., None] * frequencies
    return torch.cat([phase.sin(), phase.cos()], dim=-1).flatten(1)
