"""Finds near-duplicate photos by their perceptual hashes."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def hash_words(hashes: list[str], bits: int) -> NDArray[np.uint64]:
    """Hexadecimal hashes of ``bits`` bits, a multiple of 64, as uint64 words (N, bits / 64)."""
    return np.frombuffer(bytes.fromhex("".join(hashes)), np.uint64).reshape(-1, bits // 64)


def first_duplicates(words: NDArray[np.uint64], distance: int) -> NDArray[np.intp]:
    """The index (N,) of each hash's original: the first earlier hash that it duplicates, or itself.

    Only hashes that are not duplicates themselves count as originals.

    Args:
        words: Hashes (N, W), the preferred ones first.
        distance: Hashes are duplicates if they differ in at most this many bits.
    """
    result = np.arange(len(words))
    originals, count = np.empty_like(result), 0
    columns = np.empty(words.shape[::-1], words.dtype)
    half = (len(columns) + 1) // 2
    for index, word in enumerate(words[..., None]):
        # Compare half of the words with all originals, and all words only with the candidates.
        near = np.flatnonzero(differing_bits(columns[:half, :count], word[:half]) <= distance)
        near = near[differing_bits(columns[:, near], word) <= distance]
        if len(near):
            result[index] = originals[near[0]]
        else:
            originals[count], columns[:, count] = index, word[:, 0]
            count += 1
    return result


def differing_bits(columns: NDArray[np.uint64], word: NDArray[np.uint64]) -> NDArray[np.uint16]:
    """The Hamming distances (N,) between the columns (W, N) and ``word`` (W, 1)."""
    return np.bitwise_count(columns ^ word).sum(axis=0, dtype=np.uint16)
