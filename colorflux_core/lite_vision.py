"""Nano's vision tower: EfficientNet-Lite0 behind SigLIP's interface.

SigLIP so400m has 428 M parameters; this tower has 3.4 M. The visual prompt reads
``model(pixel_values=...).last_hidden_state``, a sequence of image tokens, one for each cell of
32 x 32 pixels. A token concatenates the features of five depths averaged over its cell (strides 2
to 32), the pooled features of the image (both standardized) and the cell's position.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput

CELL = 32


class Stage(NamedTuple):
    """A run of EfficientNet-Lite0's inverted-residual blocks (Tan and Le 2019, no squeeze)."""

    repeats: int
    kernel: int
    stride: int
    expansion: int
    channels: int


STAGES = (
    Stage(1, 3, 1, 1, 16),
    Stage(2, 3, 2, 6, 24),
    Stage(2, 5, 2, 6, 40),
    Stage(3, 3, 2, 6, 80),
    Stage(3, 5, 1, 6, 112),
    Stage(4, 5, 2, 6, 192),
    Stage(1, 3, 1, 6, 320),
)
TAPPED_STAGES = (0, 1, 2, 4, 6)
STEM_CHANNELS, HEAD_CHANNELS = 32, 1280
LOCAL_CHANNELS = sum(STAGES[i].channels for i in TAPPED_STAGES)


class LiteVisionConfig(PretrainedConfig):
    """``position_octaves``: number of frequencies (1/2, 1, 2, ... periods) of the positions."""

    model_type = "colorflux_lite_vision"

    def __init__(self, image_size: int = 256, position_octaves: int = 4, **kwargs: object) -> None:
        super().__init__(**kwargs)
        self.image_size = image_size
        self.position_octaves = position_octaves

    @property
    def hidden_size(self) -> int:
        return LOCAL_CHANNELS + HEAD_CHANNELS + 4 * self.position_octaves


class SameConv2d(nn.Conv2d):
    """TensorFlow's "same" padding: an odd pixel is added at the right or bottom."""

    def forward(self, x: Tensor) -> Tensor:
        overhang = [
            max((math.ceil(n / s) - 1) * s + k - n, 0)
            for n, s, k in zip(x.shape[-2:], self.stride, self.kernel_size, strict=True)
        ]
        (top, left) = (n // 2 for n in overhang)
        return super().forward(F.pad(x, (left, overhang[1] - left, top, overhang[0] - top)))


class InvertedResidual(nn.Module):
    """Expansion, depthwise convolution and projection, with batch norms folded in."""

    def __init__(self, channels_in: int, stage: Stage, stride: int) -> None:
        super().__init__()
        width = channels_in * stage.expansion
        self.expand = nn.Conv2d(channels_in, width, 1) if stage.expansion > 1 else nn.Identity()
        self.depthwise = SameConv2d(width, width, stage.kernel, stride, groups=width)
        self.project = nn.Conv2d(width, stage.channels, 1)
        self.residual = stride == 1 and channels_in == stage.channels

    def forward(self, x: Tensor) -> Tensor:
        expanded = x if isinstance(self.expand, nn.Identity) else F.relu6(self.expand(x))
        y = self.project(F.relu6(self.depthwise(expanded)))
        return x + y if self.residual else y


class LiteVisionModel(PreTrainedModel):
    """EfficientNet-Lite0 with image tokens as its output; usually frozen while Redux is trained."""

    config_class = LiteVisionConfig
    main_input_name = "pixel_values"

    def __init__(self, config: LiteVisionConfig) -> None:
        super().__init__(config)
        self.stem = SameConv2d(3, STEM_CHANNELS, 3, 2)
        channels, stages = STEM_CHANNELS, []
        for stage in STAGES:
            blocks = []
            for i in range(stage.repeats):
                blocks.append(InvertedResidual(channels, stage, stage.stride if i == 0 else 1))
                channels = stage.channels
            stages.append(nn.Sequential(*blocks))
        self.stages = nn.ModuleList(stages)
        self.head = nn.Conv2d(channels, HEAD_CHANNELS, 1)
        features = LOCAL_CHANNELS + HEAD_CHANNELS
        self.feature_mean = nn.Parameter(torch.zeros(features))
        self.feature_std = nn.Parameter(torch.ones(features))
        self.post_init()

    def features(self, pixel_values: Tensor) -> Tensor:
        """Token features before standardization, (B, cells, 1792)."""
        x = F.relu6(self.stem(pixel_values))
        taps = []
        for i, stage in enumerate(self.stages):
            x = stage(x)
            if i in TAPPED_STAGES:
                taps.append(x)
        grid = (x.shape[-2], x.shape[-1])
        local = torch.cat([F.adaptive_avg_pool2d(tap, grid) for tap in taps], dim=1)
        whole = F.relu6(self.head(x)).mean(dim=(2, 3))
        local = local.flatten(2).transpose(1, 2)
        return torch.cat([local, whole[:, None].expand(-1, local.shape[1], -1)], dim=-1)

    def forward(self, pixel_values: Tensor, return_dict: bool = True) -> BaseModelOutput:
        """Image tokens (B, cells, hidden_size) of normalized pixels (B, 3, H, W).

        H and W are multiples of 32; the cells are in row-major order.
        """
        height, width = (n // CELL for n in pixel_values.shape[-2:])
        features = (self.features(pixel_values) - self.feature_mean) / self.feature_std
        position = cell_positions(height, width, self.config.position_octaves).to(features)
        tokens = torch.cat([features, position.expand(len(features), -1, -1)], dim=-1)
        return BaseModelOutput(last_hidden_state=tokens)


def cell_positions(height: int, width: int, octaves: int) -> Tensor:
    """Fourier features (1, height * width, 4 * octaves) of the cell centres, in row-major order."""
    centres = [(torch.arange(n) + 0.5) / n for n in (height, width)]
    grid = torch.stack(torch.meshgrid(*centres, indexing="ij"), dim=-1).flatten(0, 1)
    phase = grid[..., None] * torch.pi * 2.0 ** torch.arange(octaves)
    return torch.cat([phase.sin(), phase.cos()], dim=-1).flatten(1)[None]
