"""What a vision model of your own sees: are the results like the truths, one by one and as a whole?

The model is a local folder of transformers with safetensors: a whole CLIP or SigLIP, or a vision
tower of them, DINOv2 and others with a pooled output. Scores of other weights cannot be compared.
The distance is that of FID by other features, and not to be called FID: Inception's weights come as
a pickle or as TorchScript, which are programs and are not loaded here.
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
from ..report.tables import Column
from ..scores import Score
from .cache import Cache

logger = logging.getLogger(__name__)


class Encoder(NamedTuple):
    kind: str
    """Of the model, such as ``clip``."""

    content: str
    """A hash of its files, and its type."""

    model: PreTrainedModel
    processor: Any

    @property
    def similarity(self) -> Column:
        return Column(
            f"{self.kind}_similarity",
            f"{self.kind} similarity",
            "higher",
            explanation=f"Cosine between the {self.kind} features of a result and its truth.",
        )

    @property
    def distance(self) -> Column:
        return Column(
            f"{self.kind}_distance",
            f"{self.kind} FD",
            "lower",
            explanation=f"Fréchet distance between the {self.kind} features of all results and all"
            " truths. Not FID, whose features are Inception's; and few images give too much.",
        )


def load_encoder(
    folder: Path, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> Encoder:
    """Raises ColorFluxError when the folder has no such model, or weights of it are missing."""
    with explained("vision model", folder):
        model, report = AutoModel.from_pretrained(
            folder,
            local_files_only=True,
            use_safetensors=True,
            dtype=dtype,
            output_loading_info=True,
        )
        # With torchvision, transformers 5 would take another way to resize.
        processor = AutoImageProcessor.from_pretrained(folder, local_files_only=True, backend="pil")
    require_fit(folder, report["missing_keys"], (), ())
    require_finite(folder, model.state_dict())
    files = sorted([*folder.glob("*.json"), *folder.glob("*.safetensors")])
    content = f"{dtype} " + " ".join(sha256(file.read_bytes()) for file in files)
    kind = model.config.model_type.removesuffix("_model").removesuffix("_vision")
    return Encoder(kind, content, model.to(device).eval(), processor)


@torch.inference_mode()
def encode(encoder: Encoder, path: Path) -> Tensor:
    """A photo's features (D), float32, on the CPU.

    The embedding that CLIP compares with a text's, or what a vision tower pools. Raises
    ColorFluxError when the photo cannot be read.
    """
    image = eight_bit(load_photo(path).pixels)
    pixels = encoder.processor(images=image, return_tensors="pt")["pixel_values"].to(
        encoder.model.device, encoder.model.dtype
    )
    embed = getattr(encoder.model, "get_image_features", encoder.model)
    found = embed(pixel_values=pixels)
    # A tensor before transformers 5.
    return getattr(found, "pooler_output", found)[0].float().cpu()


def feature_scores(
    sets: Sequence[BenchmarkSet], methods: Sequence[Method], encoder: Encoder, cache: Path
) -> list[Score]:
    """Of each image its similarity to the truth, and of each set the distance to all truths.

    Only of sets with truth. A result that is missing, or cannot be read, which is logged, has no
    similarity (NaN), and its set no distance: one over other images could not be compared.

    Args:
        cache: A file to keep features in, by the content of model and photo; made if there is none.

    Raises:
        ColorFluxError: as :meth:`Method.results`, when a truth cannot be read, or the cache not be
            read or written.
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
            whole = [of_result for of_result in found if of_result is not None]
            distance = math.nan
            if len(whole) == len(true) > 1:
                distance = frechet_distance(torch.stack(whole), torch.stack(true))
            scores.append(Score(benchmark.name, method.name, "", encoder.distance.key, distance))
    return scores


def frechet_distance(one: Tensor, other: Tensor) -> float:
    """Between the normal distributions that fit two sets of features (N, D), N > 1 in each.

    Heusel et al. 2017, equation 6, squared as there. The trace of the root of the product of both
    covariances is the sum of the singular values of the product of their factors, so that no root
    of a singular matrix is taken where there are fewer images than dimensions.
    """
    means, factors = zip(*map(_mean_and_factor, (one, other)), strict=True)
    common = torch.linalg.svdvals(factors[0] @ factors[1].T).sum()
    variances = sum(factor.square().sum() for factor in factors)
    return ((means[0] - means[1]).square().sum() + variances - 2 * common).clamp(min=0).item()


def _mean_and_factor(features: Tensor) -> tuple[Tensor, Tensor]:
    """The mean, and R of which R' R is the covariance; in float64."""
    features = features.double()
    mean = features.mean(dim=0)
    centered = (features - mean) / math.sqrt(len(features) - 1)
    return mean, torch.linalg.qr(centered, mode="r").R
