"""Similarity and Fréchet distance of vision features, from a local vision model.

The model is a transformers folder with safetensors weights: CLIP or SigLIP, or only the vision
tower, DINOv2 or another model with a pooled output. Scores of different weights are not
comparable. The distance is computed like FID but on other features, so it is not called FID:
Inception's weights come as a pickle or TorchScript, which can execute code and are not loaded here.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm
from transformers import AutoImageProcessor, AutoModel, PreTrainedModel

from ...bundles.weights import explained, require_finite, require_fit
from ...digest import sha256
from ...errors import ColorFluxError
from ...photos.images import eight_bit
from ...photos.photo import load_photo
from ..benchmark.methods import Method
from ..benchmark.sets import BenchmarkSet
from ..scores import Column, Score
from .cache import Cache

logger = logging.getLogger(__name__)


class Encoder(NamedTuple):
    """A vision model and the columns of its two metrics."""

    kind: str
    """The model type, such as ``clip``."""

    content: str
    """The dtype and the hashes of the model's files, part of the cache key."""

    model: PreTrainedModel
    processor: Any

    @property
    def similarity(self) -> Column:
        return Column(
            f"{self.kind}_similarity",
            f"{self.kind} similarity",
            "higher",
            explanation=f"Cosine similarity of the {self.kind} features of a result and its truth.",
        )

    @property
    def distance(self) -> Column:
        return Column(
            f"{self.kind}_distance",
            f"{self.kind} FD",
            "lower",
            explanation=f"Fréchet distance between the {self.kind} features of all results and all"
            " truths. Not FID, which uses Inception features; biased upwards for few images.",
        )


def load_encoder(
    folder: Path, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> Encoder:
    """Load a vision model; raises ColorFluxError if it is unsupported or incomplete."""
    with explained("vision model", folder):
        model, report = AutoModel.from_pretrained(
            folder,
            local_files_only=True,
            use_safetensors=True,
            dtype=dtype,
            output_loading_info=True,
        )
        # With torchvision installed, transformers 5 would resize differently.
        processor = AutoImageProcessor.from_pretrained(folder, local_files_only=True, backend="pil")
    require_fit(folder, report["missing_keys"], (), ())
    require_finite(folder, model.state_dict())
    files = sorted([*folder.glob("*.json"), *folder.glob("*.safetensors")])
    content = f"{dtype} " + " ".join(sha256(file.read_bytes()) for file in files)
    kind = model.config.model_type.removesuffix("_model").removesuffix("_vision")
    return Encoder(kind, content, model.to(device).eval(), processor)


@torch.inference_mode()
def encode(encoder: Encoder, path: Path) -> Tensor:
    """Compute a photo's features, float32 (D) on the CPU.

    These are CLIP's projected image embedding, or the pooled output of a vision tower.

    Raises:
        ColorFluxError: if the photo cannot be read.
    """
    image = eight_bit(load_photo(path).pixels)
    pixels = encoder.processor(images=image, return_tensors="pt")["pixel_values"].to(
        encoder.model.device, encoder.model.dtype
    )
    embed = getattr(encoder.model, "get_image_features", encoder.model)
    found = embed(pixel_values=pixels)
    # Before transformers 5 this is a tensor.
    return getattr(found, "pooler_output", found)[0].float().cpu()


def feature_scores(
    sets: Sequence[BenchmarkSet], methods: Sequence[Method], encoder: Encoder, cache: Path
) -> list[Score]:
    """Score each image's similarity to its truth, and each set's distance to its truths.

    Sets without truth are skipped. A missing or unreadable result has similarity NaN, and so does
    the distance of its set, because distances over different images are not comparable. Unreadable
    results are logged.

    Args:
        cache: File for the features, keyed by the content of model and photo; created if needed.

    Raises:
        ColorFluxError: as :meth:`Method.results`, or if a truth cannot be read or the cache cannot
            be used.
    """
    kept = Cache(cache)

    def features(path: Path) -> Tensor:
        key = sha256(f"{encoder.content} {sha256(path.read_bytes())}".encode())
        if key not in kept:
            kept.add(key, encode(encoder, path).tolist())
        return torch.tensor(kept[key])

    def features_of_result(path: Path | None) -> Tensor | None:
        try:
            return features(path) if path else None
        except ColorFluxError as error:
            logger.warning("%s counts as missing: %s", path, error)
            return None

    scores = []
    for benchmark in sets:
        truths = {item.name: item.truth for item in benchmark.items if item.truth}
        if not truths:
            continue
        true = [features(path) for path in tqdm(truths.values(), encoder.kind, unit="image")]
        for method in methods:
            results = method.results(benchmark)
            found = [
                features_of_result(results.get(name))
                for name in tqdm(truths, f"{encoder.kind}, {method.name}", unit="image")
            ]
            for name, of_result, of_truth in zip(truths, found, true, strict=True):
                cosine = math.nan
                if of_result is not None:
                    cosine = torch.cosine_similarity(of_result, of_truth, dim=0).item()
                scores.append(
                    Score(benchmark.name, method.name, name, encoder.similarity.key, cosine)
                )
            present = [of_result for of_result in found if of_result is not None]
            distance = math.nan
            if len(present) == len(true) > 1:
                distance = frechet_distance(torch.stack(present), torch.stack(true))
            scores.append(Score(benchmark.name, method.name, "", encoder.distance.key, distance))
    return scores


def frechet_distance(one: Tensor, other: Tensor) -> float:
    """Squared Fréchet distance of normal distributions fitted to two feature sets (N, D), N > 1.

    Heusel et al. 2017, equation 6. The trace of the square root of the product of both covariances
    equals the sum of the singular values of the product of their factors, which avoids the square
    root of a singular matrix if there are fewer images than dimensions.
    """
    means, factors = zip(*map(_mean_and_factor, (one, other)), strict=True)
    common = torch.linalg.svdvals(factors[0] @ factors[1].T).sum()
    variances = sum(factor.square().sum() for factor in factors)
    return ((means[0] - means[1]).square().sum() + variances - 2 * common).clamp(min=0).item()


def _mean_and_factor(features: Tensor) -> tuple[Tensor, Tensor]:
    """The mean (D) and a factor R with R' R equal to the covariance, in float64."""
    features = features.double()
    mean = features.mean(dim=0)
    centered = (features - mean) / math.sqrt(len(features) - 1)
    return mean, torch.linalg.qr(centered, mode="r").R
