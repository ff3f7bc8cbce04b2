"""Files of weights that are damaged or for another model are refused in one line."""

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
    """Turns what the libraries raise over bad files into one line."""
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
    """Refuse weights that are not exactly a model's; ``mismatched`` is (key, shape, its shape)."""
    for key, one, other in sorted(mismatched):
        raise ColorFluxError(
            f"{source} has a wrong shape at {key}: {tuple(one)}, where {tuple(other)} belongs."
        )
    for what, keys in (("lacks", missing), ("has an unknown", unexpected)):
        if keys:
            raise ColorFluxError(
                f"{source} {what} {min(keys)} ({len(keys)} such): it is damaged or for another "
                "model."
            )


def require_same_layout(
    source: Path | str, expected: Mapping[str, Tensor], state: Mapping[str, Tensor]
) -> None:
    """Refuse weights that have not exactly the expected keys and shapes."""
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
    """Refuse weights that are not numbers."""
    for key, tensor in state.items():
        if not tensor.sum(dtype=torch.float32).isfinite():
            raise ColorFluxError(f"{source} holds NaN or infinite values in {key}: get it again.")
