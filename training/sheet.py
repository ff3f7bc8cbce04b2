"""Contact sheets."""

from __future__ import annotations

from pathlib import Path

import torch
from PIL import Image
from torch import Tensor


def save_sheet(rows: list[Tensor], path: Path) -> None:
    """Save one row of pictures per tensor (N, 3, H, W) in [0, 1], all of one shape."""
    grid = torch.cat([torch.cat(list(row.float().cpu()), dim=-1) for row in rows], dim=-2)
    pixels = (grid.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).contiguous()
    Image.fromarray(pixels.numpy()).save(path, quality=92)
