"""PNG files by their chunks: metadata in and out, and pictures of 16 bits."""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Iterator, Sequence
from typing import IO, BinaryIO

import numpy as np
from numpy.typing import NDArray

SIGNATURE = b"\x89PNG\r\n\x1a\n"
XMP_KEYWORD = b"XML:com.adobe.xmp"
LARGEST_PROFILE = 2**26

Chunk = tuple[bytes, bytes]

_PICTURE = {b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND"}


def read_chunks(file: BinaryIO) -> tuple[bytes, list[Chunk]]:
    """The file with nothing but its picture, and the other chunks.

    Decoders that are given the picture alone cannot fail on large texts or damaged metadata.
    """
    picture, others = [SIGNATURE], []
    file.seek(len(SIGNATURE))
    while len(head := file.read(8)) == 8:
        length, name = struct.unpack(">I4s", head)
        data = file.read(length + 4)
        if name in _PICTURE:
            picture += [head, data]
        elif len(data) == length + 4:
            others.append((name, data[:-4]))
        if name == b"IEND":
            break
    return b"".join(picture), others


def text(chunks: Sequence[Chunk], keyword: bytes) -> bytes:
    """The text under a keyword, of whichever kind of text chunk; empty if there is none."""
    for name, data in chunks:
        found, _, rest = data.partition(b"\0")
        if found != keyword:
            continue
        if name == b"tEXt":
            return rest
        if name == b"zTXt":
            return inflate(rest[1:])
        if name == b"iTXt":
            value = rest[2:].split(b"\0", 2)[-1]
            return inflate(value) if rest[:1] == b"\1" else value
    return b""


def raw_profile(chunks: Sequence[Chunk], *kinds: str) -> bytes:
    """Metadata that ImageMagick and ExifTool store as hexadecimal text."""
    for kind in kinds:
        found = re.fullmatch(
            rb"\s*[^\n]+\n\s*(\d+)\n([0-9a-fA-F\s]*)",
            text(chunks, b"Raw profile type " + kind.encode()),
        )
        if found:
            return bytes.fromhex(found[2].decode())[: int(found[1])]
    return b""


def raw_profile_chunk(kind: str, data: bytes) -> Chunk:
    hexadecimal = data.hex()
    lines = "\n".join(hexadecimal[at : at + 72] for at in range(0, len(hexadecimal), 72))
    content = f"\n{kind}\n{len(data):8}\n{lines}\n".encode()
    return b"zTXt", f"Raw profile type {kind}".encode() + b"\0\0" + zlib.compress(content)


def profile_chunk(name: str, profile: bytes) -> Chunk:
    return b"iCCP", name.encode() + b"\0\0" + zlib.compress(profile)


def inflate(data: bytes) -> bytes:
    """Raises zlib.error; what is longer than any sensible metadata is cut."""
    return zlib.decompressobj().decompress(data, LARGEST_PROFILE)


def with_chunks(encoded: bytes, chunks: Sequence[Chunk]) -> Iterator[bytes | memoryview]:
    """The pieces of a PNG file with these chunks after its header."""
    header_end = len(SIGNATURE) + 25
    yield encoded[:header_end]
    for name, data in chunks:
        yield _chunk(name, data)
    yield memoryview(encoded)[header_end:]


def write_sixteen_bit(
    file: IO[bytes], samples: NDArray[np.uint16], chunks: Sequence[Chunk]
) -> None:
    """A 16-bit RGB PNG of samples (H, W, 3), compressed row by row for the sake of large scans."""
    height, width, _ = samples.shape
    file.write(SIGNATURE + _chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)))
    for name, data in chunks:
        file.write(_chunk(name, data))
    deflate = zlib.compressobj(6)
    above = np.zeros(width * 6, np.uint8)
    for row in samples:
        line = row.astype(">u2").reshape(-1).view(np.uint8)
        compressed = deflate.compress(b"\2" + (line - above).tobytes())  # filter 2: up
        above = line
        if compressed:
            file.write(_chunk(b"IDAT", compressed))
    file.write(_chunk(b"IDAT", deflate.flush()) + _chunk(b"IEND", b""))


def _chunk(name: bytes, data: bytes) -> bytes:
    body = name + data
    return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))
