"""What is attainable: a regression head from the gray photo's image tokens to coarse chroma.

    python -m benchmarks.regression --recipe benchmarks/regression.toml --photos FOLDER

It sees what nano sees, is trained on the same photos, and gives the mean of what a thing's color
may be: closer to the truth than a choice can be, and paler. ``benchmarks.heldout`` shows it beside.
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from colorflux_core.color import merge_luminance, rgb_to_ycbcr, unit_range, ycbcr_to_rgb
from training.config import parse, run
from training.data import Batch, Picture, Rows
from training.fresh import FRESH, FreshEncoder, encoded_columns
from training.loop import Loss, Training, train
from training.parallel import devices
from training.parts import Parts, PartsConfig, pictures
from training.sheet import Sheet

FILE = "regression.safetensors"
GRID = 16


class RegressionHead(nn.Module):
    """Image tokens of a square (N, T, D) -> mean chroma of each grid cell (N, 2, GRID, GRID)."""

    def __init__(self, tokens: int, width: int, hidden: int = 256) -> None:
        super().__init__()
        self.side = int(tokens**0.5)
        fine = GRID // self.side
        self.enter = nn.Sequential(nn.Dropout(0.3), nn.Linear(width, hidden), nn.SiLU())
        self.mix = nn.ModuleList(nn.Conv2d(hidden, hidden, 3, padding=1) for _ in range(2))
        self.leave = nn.Sequential(
            nn.Dropout(0.3), nn.Conv2d(hidden, 2 * fine**2, 1), nn.PixelShuffle(fine)
        )

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.enter(tokens.float()).transpose(1, 2).unflatten(2, (self.side, self.side))
        for mix in self.mix:
            x = x + F.silu(mix(x))
        return self.leave(x).float()


class RegressionStage:
    """Squared error of the coarse chroma."""

    def __init__(self, config: PartsConfig, parts: Parts) -> None:
        torch.manual_seed(config.seed)
        self.encoder = FreshEncoder(parts, {"seen": ("tokens", "gray")})
        side = self.encoder.tower.config.image_size // 32
        self.trainable = RegressionHead(side**2, self.encoder.tower.config.hidden_size)

    def draw(self, batch: Batch, generators: list[torch.Generator]) -> Batch:
        color, gray = unit_range(batch[FRESH]).unbind(1)
        return {"seen": self.encoder.encode("tokens", gray).float(), "chroma": coarse(color)}

    def loss(self, batch: Batch) -> Loss:
        return F.mse_loss(self.trainable(batch["seen"]), batch["chroma"]), {}

    def sample(self, samples: list[Picture]) -> Sheet | None:
        return None

    def save(self, folder: Path) -> None:
        if devices().is_main_process:
            save_file(self.trainable.state_dict(), folder / FILE)


def coarse(rgb: Tensor) -> Tensor:
    """Mean chroma of each cell of the grid."""
    return F.adaptive_avg_pool2d(rgb_to_ycbcr(rgb)[:, 1:], GRID)


def load_head(folder: Path, tokens: int, width: int) -> RegressionHead:
    head = RegressionHead(tokens, width)
    head.load_state_dict(load_file(folder / FILE))
    return head.eval()


def with_chroma(planes: Tensor, gray: Tensor) -> Tensor:
    """The gray photos (N, 3, H, W) in the colors of coarse chroma planes (N, 2, h, w)."""
    y = gray[:, :1]
    smooth = F.interpolate(planes, size=gray.shape[-2:], mode="bilinear")
    return merge_luminance(ycbcr_to_rgb(torch.cat([y, smooth], dim=1)), y)


def main(argv: list[str]) -> None:
    config = parse(PartsConfig, argv, "benchmarks.regression")
    chosen, parts = pictures(config, "regression"), Parts(config)
    columns = encoded_columns(parts, chosen, {"seen": ("tokens", "gray")})
    rows = Rows([picture.photo.file for picture in chosen], columns)
    train(Training(RegressionStage(config, parts), rows, []), config)


if __name__ == "__main__":
    run(main)
