"""What a photo file says about the photo: EXIF, XMP, IPTC, comments, resolution, time."""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

from . import exif as tags_of
from . import jpeg, png
from .exif import Tags
from .xmp import corrected_packet

Dpi = tuple[float, float]
T = TypeVar("T")

# Photoshop resources that describe the photo: IPTC and its digest, copyright flag, URL.
_IPTC_RESOURCE = 0x0404
_KEPT_RESOURCES = {_IPTC_RESOURCE, 0x0425, 0x040A, 0x040B}
# PNG chunks that are kept as they are; texts that repeat other metadata are not.
_TEXTS = {b"tEXt", b"zTXt", b"iTXt", b"tIME"}
_METADATA_TEXTS = (b"Raw profile type ", png.XMP_KEYWORD)


@dataclass(frozen=True)
class Metadata:
    """A photo's metadata, of which each format holds what it can.

    Attributes:
        exif: The tags that describe the photo, as their bytes were.
        xmp: An XMP packet.
        photoshop: Photoshop resources, IPTC among them.
        comment: Of a JPEG or GIF file.
        texts: Text chunks of a PNG file.
        dpi: Horizontal and vertical resolution, if the file states one.
        modified: When the file was modified, in nanoseconds.
    """

    exif: Tags = field(default_factory=Tags)
    xmp: bytes = b""
    photoshop: bytes = b""
    comment: bytes = b""
    texts: tuple[png.Chunk, ...] = ()
    dpi: Dpi | None = None
    modified: int | None = None

    def scaled(self, growth: float) -> Metadata:
        """Of a picture with ``growth`` times as many pixels, on the same paper."""
        if self.dpi is None or growth == 1:
            return self
        return replace(self, dpi=(self.dpi[0] * growth, self.dpi[1] * growth))


class Reader:
    """Collects metadata; what is damaged is left out, with a remark."""

    def __init__(self) -> None:
        self.remarks: list[str] = []
        self.orientation = 1

    def read(
        self,
        *,
        exif: Callable[[], Tags | None] = lambda: None,
        xmp: Callable[[], bytes] = bytes,
        photoshop: Callable[[], bytes] = bytes,
        comment: bytes = b"",
        texts: Sequence[png.Chunk] = (),
        dpi: Dpi | None = None,
    ) -> Metadata:
        tags = self._try(exif, "EXIF") or Tags()
        packet = (self._try(xmp, "XMP") or b"").strip(b"\0 \r\n\t")
        self.orientation = tags.orientation
        if tags_of.ORIENTATION not in tags.main:
            found = re.search(rb"tiff:Orientation(?:=\"|>)([2-8])", packet)
            self.orientation = int(found[1]) if found else 1
        described, lost = tags_of.describing(tags)
        self.remarks += [f"{what} left out" for what in lost]
        resources = self._try(lambda: kept_resources(photoshop()), "IPTC") or b""
        dpi = (tags_of.plausible_dpi(*dpi) if dpi else None) or tags.dpi
        return Metadata(described, packet, resources, comment, tuple(texts), dpi)

    def _try(self, read: Callable[[], T], what: str) -> T | None:
        try:
            return read()
        except (ValueError, ArithmeticError, LookupError, TypeError, struct.error, zlib.error):
            self.remarks.append(f"damaged {what} left out")
            return None


def block(data: bytes) -> Callable[[], Tags | None]:
    """Reads an EXIF block, which may be empty."""
    return lambda: tags_of.read_block(data) if data else None


def read_jpeg(reader: Reader, segments: jpeg.Jpeg) -> Metadata:
    metadata = reader.read(
        exif=block(segments.first(jpeg.APP1, jpeg.EXIF_PREFIX)),
        xmp=lambda: segments.first(jpeg.APP1, jpeg.XMP_PREFIX),
        photoshop=lambda: segments.all(jpeg.APP13, jpeg.PHOTOSHOP_PREFIX),
        comment=segments.first(jpeg.COMMENT),
        dpi=segments.density,
    )
    if segments.first(jpeg.APP1, b"http://ns.adobe.com/xmp/extension/\0"):
        reader.remarks.append("extended XMP left out")
    return metadata


def read_png(reader: Reader, chunks: Sequence[png.Chunk]) -> Metadata:
    by_name = dict(reversed(chunks))
    size = by_name.get(b"pHYs", b"")
    dpi = None
    if len(size) == 9 and size[8] == 1:
        horizontal, vertical = struct.unpack(">II", size[:8])
        dpi = horizontal * 0.0254, vertical * 0.0254

    def resources() -> bytes:
        found = png.raw_profile(chunks, "8bim", "iptc")
        return iptc_resource(found) if found[:1] == b"\x1c" else found

    return reader.read(
        exif=lambda: block(by_name.get(b"eXIf") or png.raw_profile(chunks, "exif", "APP1"))(),
        xmp=lambda: png.text(chunks, png.XMP_KEYWORD) or png.raw_profile(chunks, "xmp"),
        photoshop=resources,
        texts=[(n, d) for n, d in chunks if n in _TEXTS and not d.startswith(_METADATA_TEXTS)],
        dpi=dpi,
    )


def read_tiff(reader: Reader, read: Callable[[], Tags]) -> Metadata:
    """From a TIFF file's tags, which ``read`` reads."""
    tags = reader._try(read, "tags") or Tags()

    def data(tag: int) -> bytes:
        found = tags.main.get(tag)
        return found.data if found else b""

    def resources() -> bytes:
        found, iptc = data(tags_of.PHOTOSHOP), data(tags_of.IPTC)
        if iptc and _IPTC_RESOURCE not in dict(resources_in(found)):
            found += iptc_resource(iptc)
        return found

    return reader.read(exif=lambda: tags, xmp=lambda: data(tags_of.XMP), photoshop=resources)


def resources_in(photoshop: bytes) -> Iterator[tuple[int, bytes]]:
    """(id, the resource with its header) for each of Photoshop's resources."""
    at = 0
    while photoshop[at : at + 4] == b"8BIM" and at + 12 <= len(photoshop):
        (number,) = struct.unpack_from(">H", photoshop, at + 4)
        name_length = photoshop[at + 6] + 1
        data_at = at + 6 + name_length + name_length % 2 + 4
        (length,) = struct.unpack_from(">I", photoshop, data_at - 4)
        end = data_at + length + length % 2
        yield number, photoshop[at:end]
        at = end


def kept_resources(photoshop: bytes) -> bytes:
    return b"".join(data for number, data in resources_in(photoshop) if number in _KEPT_RESOURCES)


def iptc_resource(iptc: bytes) -> bytes:
    head = b"8BIM" + struct.pack(">H", _IPTC_RESOURCE) + b"\0\0" + struct.pack(">I", len(iptc))
    return head + iptc + bytes(len(iptc) % 2)


def _iptc(photoshop: bytes) -> bytes:
    resource = dict(resources_in(photoshop)).get(_IPTC_RESOURCE, b"")
    (length,) = struct.unpack_from(">I", resource, 8) if len(resource) >= 12 else (0,)
    return resource[12 : 12 + length]


@dataclass(frozen=True)
class Output:
    """Metadata for a result in one format; ``lost`` is what that format cannot hold."""

    exif: bytes
    xmp: bytes
    lost: list[str]
    segments: list[tuple[int, bytes]]
    chunks: list[png.Chunk]
    tags: Tags


def for_output(metadata: Metadata, file_format: str, size: tuple[int, int], xmp: bytes) -> Output:
    """What a result of (height, width) says: ``xmp`` is its packet, which may be empty."""
    tags = tags_of.corrected(metadata.exif, size, metadata.dpi)
    xmp = corrected_packet(xmp, file_format) if xmp else b""
    has_tags = tags.main or tags.exif or tags.gps
    exif = tags_of.write_block(tags) if has_tags else b""
    lost = []
    if metadata.photoshop and file_format == "WEBP":
        lost.append("IPTC")
    if metadata.comment and file_format in ("TIFF", "WEBP"):
        lost.append("the comment")
    if metadata.texts and file_format != "PNG":
        lost.append("PNG texts")
    segments, chunks = [], []
    if file_format == "JPEG":
        if len(exif) + len(jpeg.EXIF_PREFIX) > jpeg.LONGEST:
            lost.append("EXIF (too large for JPEG)")
        elif exif:
            segments.append((jpeg.APP1, jpeg.EXIF_PREFIX + exif))
        if xmp and len(xmp) + len(jpeg.XMP_PREFIX) <= jpeg.LONGEST:
            segments.append((jpeg.APP1, jpeg.XMP_PREFIX + xmp))
        room = jpeg.LONGEST - len(jpeg.PHOTOSHOP_PREFIX)
        for at in range(0, len(metadata.photoshop), room):
            part = metadata.photoshop[at : at + room]
            segments.append((jpeg.APP13, jpeg.PHOTOSHOP_PREFIX + part))
        if metadata.comment:
            segments.append((jpeg.COMMENT, metadata.comment[: jpeg.LONGEST]))
    elif file_format == "PNG":
        if metadata.dpi:
            per_meter = [round(value / 0.0254) for value in metadata.dpi]
            chunks.append((b"pHYs", struct.pack(">IIB", *per_meter, 1)))
        if exif:
            chunks.append((b"eXIf", exif))
        if xmp:
            chunks.append((b"iTXt", png.XMP_KEYWORD + b"\0\0\0\0\0" + xmp))
        if metadata.photoshop:
            chunks.append(png.raw_profile_chunk("iptc", metadata.photoshop))
        if metadata.comment:
            text = metadata.comment.replace(b"\0", b" ").decode("utf-8", "replace").encode()
            chunks.append((b"iTXt", b"Comment\0\0\0\0\0" + text))
        chunks += metadata.texts
    elif file_format == "TIFF":
        main = dict(tags.main)
        iptc = _iptc(metadata.photoshop)
        others = [r for number, r in resources_in(metadata.photoshop) if number != _IPTC_RESOURCE]
        for tag, data, kind in (
            (tags_of.XMP, xmp, tags_of.BYTE),
            (tags_of.IPTC, iptc, tags_of.UNDEFINED),
            (tags_of.PHOTOSHOP, b"".join(others), tags_of.BYTE),
        ):
            if data:
                main[tag] = tags_of.undefined(data, kind)
        tags = replace(tags, main=main)
    return Output(exif, xmp, [f"{what} dropped" for what in lost], segments, chunks, tags)


def needs_sidecar(output: Output, file_format: str) -> bool:
    """Whether the packet is too large for the format, and goes beside the file."""
    return file_format == "JPEG" and len(output.xmp) + len(jpeg.XMP_PREFIX) > jpeg.LONGEST
