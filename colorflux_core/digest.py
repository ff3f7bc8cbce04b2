"""Content digests: equal for equal bytes, whatever the file is called."""

from __future__ import annotations

import hashlib


def digest(*contents: bytes | bytearray | memoryview) -> str:
    """BLAKE2b over the contents one after the other, as 32 hexadecimal digits."""
    blake = hashlib.blake2b(digest_size=16)
    for content in contents:
        blake.update(content)
    return blake.hexdigest()
