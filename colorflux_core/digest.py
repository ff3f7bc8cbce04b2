"""Hashes of contents, as hexadecimal text.

There are two since both are in files that users keep: :func:`digest` in checkpoints and the names
of encoded photos, :func:`sha256` in manifests, benchmark sets and caches of scores.
"""

from __future__ import annotations

import hashlib

Content = bytes | bytearray | memoryview


def digest(*contents: Content) -> str:
    """BLAKE2b of the concatenated contents, 32 digits."""
    blake = hashlib.blake2b(digest_size=16)
    for content in contents:
        blake.update(content)
    return blake.hexdigest()


def sha256(*contents: Content) -> str:
    """SHA-256 of the concatenated contents, 64 digits."""
    sha = hashlib.sha256()
    for content in contents:
        sha.update(content)
    return sha.hexdigest()
