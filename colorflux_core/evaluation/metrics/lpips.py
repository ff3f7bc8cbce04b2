"""LPIPS (Zhang et al. 2018, version 0.1, VGG16) with weights from a safetensors file.

The published weights are pickles, which are not loaded here. With the package ``lpips`` installed,
convert them like this:

    import lpips, safetensors.torch
    state = lpips.LPIPS(net="vgg").state_dict().items()
    weights = {key: value for key, value in state if not key.startswith("lins.")}
    safetensors.torch.save_file(weights, "lpips_vgg.safetensors")
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor
from tqdm import tqdm

from ...bundles.weights import explained, require_finite, require_same_layout
from ...digest import sha256
from ...errors import ColorFluxError
from ...photos.photo import load_photo
from ...photos.resize import Resizing
from ..benchmark.methods import Method
from ..benchmark.sets import BenchmarkSet
from ..scores import Column, Score
from .cache import Cache

logger = logging.getLogger(__name__)

COLUMN = Column(
    "lpips",
    "LPIPS",
    "lower",
    explanation="Learned perceptual distance to the truth (version 0.1, VGG16): 0 is the same.",
)

BLOCKS = (
    (64, (0, 2)),
    (128, (5, 7)),
    (256, (10, 12, 14)),
    (512, (17, 19, 21)),
    (512, (24, 26, 28)),
)
"""Channels and convolution indices of each VGG16 block; blocks are separated by max pooling."""

SMALLEST = 2 ** (len(BLOCKS) - 1)
"""Minimum side in pixels so that the last block has one left; smaller images are padded."""

Weights = Mapping[str, Tensor]


def load_lpips(path: Path, device: torch.device | str = "cpu") -> Weights:
    """Load converted weights; raises ColorFluxError if the file has another layout."""
    with explained("LPIPS", path):
        weights = load_file(path, device=str(device))
    require_same_layout(path, _layout(), weights)
    require_finite(path, weights)
    return weights


def _layout() -> dict[str, Tensor]:
    shapes: dict[str, tuple[int, ...]] = {
        "scaling_layer.shift": (1, 3, 1, 1),
        "scaling_layer.scale": (1, 3, 1, 1),
    }
    before = 3
    for block, (channels, places) in enumerate(BLOCKS):
        for place in places:
            shapes[f"net.slice{block + 1}.{place}.weight"] = (channels, before, 3, 3)
            shapes[f"net.slice{block + 1}.{place}.bias"] = (channels,)
            before = channels
        shapes[f"lin{block}.model.1.weight"] = (1, channels, 1, 1)
    return {key: torch.empty(shape, device="meta") for key, shape in shapes.items()}


@torch.inference_mode()
def lpips(weights: Weights, one: Tensor, other: Tensor) -> Tensor:
    """LPIPS distance of two image batches (N, 3, H, W) in [0, 1]: (N).

    A pair of 1-megapixel images takes about 1.5 GB of memory.
    """
    missing = [max(0, SMALLEST - side) for side in one.shape[:-3:-1]]
    planes = F.pad(torch.cat([one, other]), (0, missing[0], 0, missing[1]), mode="replicate")
    planes = (2 * planes - 1 - weights["scaling_layer.shift"]) / weights["scaling_layer.scale"]
    total = one.new_zeros(len(one))
    for block, (_, places) in enumerate(BLOCKS):
        if block:
            planes = F.max_pool2d(planes, 2)
        for place in places:
            key = f"net.slice{block + 1}.{place}"
            planes = F.conv2d(planes, weights[f"{key}.weight"], weights[f"{key}.bias"], padding=1)
            planes = planes.relu_()
        first, second = F.normalize(planes, dim=1, eps=1e-10).chunk(2)
        judged = F.conv2d((first - second).square(), weights[f"lin{block}.model.1.weight"])
        total += judged.mean(dim=(1, 2, 3))
    return total


def lpips_scores(
    sets: Sequence[BenchmarkSet],
    methods: Sequence[Method],
    path: Path,
    cache: Path,
    device: torch.device | str = "cpu",
) -> list[Score]:
    """Score the LPIPS distance to the truth, for each image that has one.

    The score is NaN if the result is missing, or if either file cannot be read, which is logged.
    Results are resized to the truth's size if needed.

    Args:
        path: The weights.
        cache: File for the values, keyed by the content of weights and images; created if needed.

    Raises:
        ColorFluxError: as :func:`load_lpips` and :meth:`Method.results`, or if the cache cannot be
            used.
    """
    weights, kept = load_lpips(path, device), Cache(cache)
    of_weights = sha256(path.read_bytes())

    def value(result: Path, truth: Path) -> float:
        of_pictures = f"{sha256(result.read_bytes())} {sha256(truth.read_bytes())}"
        key = sha256(f"lpips {of_weights} {of_pictures}".encode())
        if key not in kept:
            true, photo = load_photo(truth), load_photo(result)
            pair = (
                Resizing(each.size, true.size).to_canvas(each.pixels)[None].to(device)
                for each in (photo, true)
            )
            kept.add(key, lpips(weights, *pair).item())
        return float(kept[key])

    scores = []
    for benchmark in sets:
        for method in methods if any(item.truth for item in benchmark.items) else ():
            results = method.results(benchmark)
            for item in tqdm(benchmark.items, f"lpips, {method.name}", unit="image"):
                if item.truth is None:
                    continue
                found = math.nan
                if item.name in results:
                    try:
                        found = value(results[item.name], item.truth)
                    except ColorFluxError as error:
                        logger.warning(
                            "%s's %s counts as missing: %s", method.name, item.name, error
                        )
                scores.append(Score(benchmark.name, method.name, item.name, COLUMN.key, found))
    return scores
