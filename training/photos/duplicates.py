"""Photos that show the same picture, found by their perceptual hashes."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def hash_words(hashes: list[str], bits: int) -> NDArray[np.uint64]:
    """Hexadecimal hashes of so many bits, a multiple of 64, as words (N, bits / 64)."""
    return np.frombuffer(bytes.fromhex("".join(hashes)), np.uint64).reshape(-1, bits // 64)


def first_alike(words: NDArray[np.uint64], distance: int) -> NDArray[np.intp]:
    """For each hash the first before it that it repeats and that repeats none, or itself (N,).

    Args:
        words: Hashes (N, W), the preferred ones first.
        distance: Hashes repeat each other when they differ in at most this many bits.
    """
    alike = np.arange(len(words))
    originals, count = np.empty_like(alike), 0
    columns = np.empty(words.shape[::-1], words.dtype)
    half = (len(columns) + 1) // 2
    for index, word in enumerate(words[..., None]):
        # Half of it is compared with all, the whole only with those that are near by that.
        near = np.flatnonzero(differing_bits(columns[:half, :count], word[:half]) <= distance)
        near = near[differing_bits(columns[:, near], word) <= distance]
        if len(near):
            alike[index] = originals[near[0]]
        else:
            originals[count], columns[:, count] = index, word[:, 0]
            count += 1
    return alike


def differing_bits(columns: NDArray[np.uint64], word: NDArray[np.uint64]) -> NDArray[np.uint16]:
    """How many bits of each column (W, N) are not as in ``word`` (W, 1)."""
    return np.bitwise_count(columns ^ word).sum(axis=0, dtype=np.uint16)
