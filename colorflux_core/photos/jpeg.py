"""JPEG files by their segments: metadata in and out, and whether the picture is complete."""

from __future__ import annotations

import io
import re
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from PIL import Image

APP0, APP1, APP13, COMMENT = 0xE0, 0xE1, 0xED, 0xFE
EXIF_PREFIX, XMP_PREFIX = b"Exif\0\0", b"http://ns.adobe.com/xap/1.0/\0"
PHOTOSHOP_PREFIX = b"Photoshop 3.0\0"
LONGEST = 65533
"""Bytes that a segment can hold."""

_SOF = {0xC0, 0xC1, 0xC2, 0xC3, 0xC5, 0xC6, 0xC7, 0xC9, 0xCA, 0xCB, 0xCD, 0xCE, 0xCF}
_PROGRESSIVE = {0xC2, 0xC6, 0xCA, 0xCE}
_SOS, _EOI, _DRI = 0xDA, 0xD9, 0xDD
_NEXT_MARKER = re.compile(rb"\xff+[\x01-\xcf\xd8-\xfe]")
_RESTART = re.compile(rb"\xff[\xd0-\xd7]")
_FILLING = bytes(np.random.default_rng(0).integers(0, 255, 4096, np.uint8))


@dataclass
class Jpeg:
    """The segments before the picture's end; ``end`` is the place of the end marker, or None."""

    segments: list[tuple[int, bytes]] = field(default_factory=list)
    scans: list[tuple[bytes, int]] = field(default_factory=list)
    """Each scan's header, and the number of restart markers in it."""
    frame: tuple[int, bytes] = (0, b"")
    restart_interval: int = 0
    end: int | None = None

    def first(self, marker: int, prefix: bytes = b"") -> bytes:
        """The content of the first such segment, without its prefix; empty if there is none."""
        found = (data for kind, data in self.segments if kind == marker and data.startswith(prefix))
        return next(found, prefix)[len(prefix) :]

    def all(self, marker: int, prefix: bytes = b"") -> bytes:
        """The contents of all such segments, joined."""
        return b"".join(
            data[len(prefix) :]
            for kind, data in self.segments
            if kind == marker and data.startswith(prefix)
        )

    @property
    def density(self) -> tuple[float, float] | None:
        """Pixels per inch that the JFIF segment states."""
        jfif = self.first(APP0, b"JFIF\0")
        if len(jfif) < 7:
            return None
        unit, horizontal, vertical = struct.unpack(">BHH", jfif[2:7])
        scale = {1: 1.0, 2: 2.54}.get(unit)
        return (horizontal * scale, vertical * scale) if scale else None


def read_segments(data: bytes) -> Jpeg:
    """The segments of a JPEG file, as far as they can be followed."""
    jpeg, at = Jpeg(), 2
    while at + 4 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if marker in (0xFF, 0x01, *range(0xD0, 0xD8)):
            at += 1 if marker == 0xFF else 2
            continue
        if marker == _EOI:
            break
        length = int.from_bytes(data[at + 2 : at + 4], "big")
        content = data[at + 4 : at + 2 + length]
        at += 2 + length
        if marker in _SOF:
            jpeg.frame = marker, content
        elif marker == _DRI:
            jpeg.restart_interval = int.from_bytes(content[:2], "big")
        elif marker == _SOS:
            found = _NEXT_MARKER.search(data, at)
            end = found.start() if found else len(data)
            jpeg.scans.append((content, len(_RESTART.findall(data, at, end))))
            at = end
        else:
            jpeg.segments.append((marker, content))
    if data[at : at + 2] == b"\xff\xd9":
        jpeg.end = at
    return jpeg


def is_cut(data: bytes, jpeg: Jpeg) -> bool:
    """Whether the file ends properly, but before its picture is complete.

    Decoders fill the missing rest with gray and do not report it. A complete picture stays the
    same when other data follow its last scan; an incomplete one takes them for its rest.
    """
    if jpeg.end is None:
        return False  # The decoder reports this one.
    if _misses_scans(jpeg) or _misses_restarts(jpeg):
        return True
    padded = b"".join((memoryview(data)[: jpeg.end], _FILLING, b"\xff\xd9"))
    shrink = 1 if jpeg.frame[0] in _PROGRESSIVE else 8
    mode = "L" if len(jpeg.scans) == 1 else None  # Otherwise the last scan may hold color.
    return not np.array_equal(_preview(data, shrink, mode), _preview(padded, shrink, mode))


def with_segments(encoded: bytes, segments: Sequence[tuple[int, bytes]]) -> bytes:
    """The JPEG file with these segments after its first one (JFIF)."""
    jfif_end = 4 + int.from_bytes(encoded[4:6], "big")
    added = (
        struct.pack(">BBH", 0xFF, marker, len(content) + 2) + content
        for marker, content in segments
    )
    return b"".join((encoded[:jfif_end], *added, memoryview(encoded)[jfif_end:]))


def _misses_scans(jpeg: Jpeg) -> bool:
    """Whether a component lacks the full precision of any of its 64 coefficients."""
    frame = jpeg.frame[1]
    missing = {frame[at]: set(range(64)) for at in range(6, len(frame) - 2, 3)}
    for header, _ in jpeg.scans:
        count = header[0]
        first, last, precision = header[1 + 2 * count : 4 + 2 * count]
        if precision & 15 == 0:
            for component in header[1 : 1 + 2 * count : 2]:
                missing.get(component, set()).difference_update(range(first, last + 1))
    return any(missing.values())


def _misses_restarts(jpeg: Jpeg) -> bool:
    marker, frame = jpeg.frame
    if not jpeg.restart_interval or marker in _PROGRESSIVE or len(jpeg.scans) != 1:
        return False
    height, width = struct.unpack(">HH", frame[1:5])
    sampling = [(frame[at] >> 4, frame[at] & 15) for at in range(7, len(frame), 3)]
    columns = 8 * max(h for h, _ in sampling) if len(sampling) > 1 else 8
    rows = 8 * max(v for _, v in sampling) if len(sampling) > 1 else 8
    blocks = -(-width // columns) * -(-height // rows)
    return jpeg.scans[0][1] < -(-blocks // jpeg.restart_interval) - 1


def _preview(data: bytes, shrink: int, mode: str | None) -> np.ndarray:
    with Image.open(io.BytesIO(data), formats=["JPEG"]) as image:
        if image.mode == "CMYK":
            mode = None
        image.draft(mode, (-(-image.width // shrink), -(-image.height // shrink)))
        return np.asarray(image)
