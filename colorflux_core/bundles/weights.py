"""Reject weight files that are damaged or for another model, with a message of one line."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import Tensor

from ..errors import ColorFluxError


@contextmanager
def explained(name: str, path: Path) -> Iterator[None]:
    """Turn library errors about bad files into a ColorFluxError of one line."""
    try:
        yield
    except (
        AttributeError,
        KeyError,
        OSError,
        RuntimeError,
        SafetensorError,
        TypeError,
        ValueError,
    ) as error:
        reason = f"it has no {error}" if isinstance(error, KeyError) else str(error)
        reason = reason.strip().partition("\n")[0]
        raise ColorFluxError(f"The {name} cannot be read from {path}: {reason}") from error


def require_fit(
    source: Path | str,
    missing: Collection[str],
    unexpected: Collection[str],
    mismatched: Collection[tuple[str, Collection[int], Collection[int]]],
) -> None:
    """Reject weights that do not match a model exactly.

    ``mismatched`` has (key, shape in the file, shape in the model).
    """
    for key, one, other in sorted(mismatched):
        raise ColorFluxError(
            f"{source} has a wrong shape at {key}: {tuple(one)} instead of {tuple(other)}."
        )
    for what, keys in (("lacks", missing), ("has an unknown", unexpected)):
        if keys:
            raise ColorFluxError(
                f"{source} {what} {min(keys)} ({len(keys)} in total): it is damaged or for another "
                "model."
            )


def require_same_layout(
    source: Path | str, expected: Mapping[str, Tensor], state: Mapping[str, Tensor]
) -> None:
    """Reject weights whose keys and shapes are not exactly the expected ones."""
    require_fit(
        source,
        expected.keys() - state.keys(),
        state.keys() - expected.keys(),
        [
            (key, state[key].shape, tensor.shape)
            for key, tensor in expected.items()
            if key in state and tensor.shape != state[key].shape
        ],
    )


def require_finite(source: Path | str, state: Mapping[str, Tensor]) -> None:
    """Reject weights with NaN or infinite values."""
    for key, tensor in state.items():
        if not tensor.sum(dtype=torch.float32).isfinite():
            raise ColorFluxError(f"{source} has NaN or infinite values in {key}: get it again.")
