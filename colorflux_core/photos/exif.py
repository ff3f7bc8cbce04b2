"""EXIF blocks and TIFF tags, byte for byte: the values that are kept are copied, never decoded.

An EXIF block is a TIFF file without a picture: directories of tags, the main one first, from which
others hang (EXIF, GPS, interoperability). Texts keep whatever encoding they were written in.
"""

from __future__ import annotations

import io
import struct
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import BinaryIO, NamedTuple

EXIF, GPS, INTEROP = 34665, 34853, 40965
ORIENTATION, X_RESOLUTION, Y_RESOLUTION, RESOLUTION_UNIT = 274, 282, 283, 296
XMP, IPTC, PHOTOSHOP, ICC_PROFILE = 700, 33723, 34377, 34675
COLOR_SPACE, PIXEL_WIDTH, PIXEL_HEIGHT, MAKER_NOTE = 40961, 40962, 40963, 37500
BYTE, ASCII, SHORT, LONG, RATIONAL, UNDEFINED = 1, 2, 3, 4, 5, 7

_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8}
_SIZES |= {17: 8, 18: 8}
_LARGEST = 2**26

# Tags of the main directory that describe the photo: document and page name, description, maker,
# software, dates, artist, host, rating, copyright, Windows' XP texts; and those of the EXIF
# directory, which some programs write here.
_DESCRIPTIONS = {269, 270, 271, 272, 285, 305, 306, 315, 316, 18246, 18249, 33432}
_DESCRIPTIONS |= {33434, 33437, 34850, 34855, *range(36864, 42241)}
_DESCRIPTIONS -= {MAKER_NOTE, 37724, COLOR_SPACE, PIXEL_WIDTH, PIXEL_HEIGHT, INTEROP}
# Tags that describe how the file holds the picture. They go without a remark.
_STRUCTURE = {*range(254, 348), *range(400, 436), *range(512, 533), XMP, 32781, IPTC, PHOTOSHOP}
_STRUCTURE |= {ICC_PROFILE, 34016, 50341, COLOR_SPACE, PIXEL_WIDTH, PIXEL_HEIGHT}


class Tag(NamedTuple):
    """A value as the file holds it: its type, how many there are, and their bytes."""

    kind: int
    number: int
    data: bytes


Directory = dict[int, Tag]


@dataclass(frozen=True)
class Tags:
    """The directories of a block, in the byte order "<" or ">"; ``damaged`` counts tags lost."""

    order: str = "<"
    main: Directory = field(default_factory=dict)
    exif: Directory = field(default_factory=dict)
    gps: Directory = field(default_factory=dict)
    interop: Directory = field(default_factory=dict)
    damaged: int = 0

    def number(self, tag: int) -> float | None:
        """The first number of a tag of the main directory."""
        found = self.main.get(tag)
        return None if found is None else _number(found, self.order)

    @property
    def orientation(self) -> int:
        found = self.number(ORIENTATION)
        return int(found) if found is not None and found in range(1, 9) else 1

    @property
    def dpi(self) -> tuple[float, float] | None:
        """Horizontal and vertical resolution, if the tags have a plausible one."""
        unit = self.number(RESOLUTION_UNIT)
        per_inch = {2: 1.0, 3: 2.54}.get(2 if unit is None else int(unit))
        horizontal, vertical = self.number(X_RESOLUTION), self.number(Y_RESOLUTION)
        if per_inch is None or horizontal is None:
            return None
        vertical = horizontal if vertical is None else vertical
        return plausible_dpi(horizontal * per_inch, vertical * per_inch)


def plausible_dpi(horizontal: float, vertical: float) -> tuple[float, float] | None:
    """The resolution, unless it is a placeholder or nonsense."""
    is_plausible = 1 < horizontal < 1e5 and 1 < vertical < 1e5
    return (horizontal, vertical) if is_plausible else None


def read_block(block: bytes) -> Tags:
    """The tags of an EXIF block, with or without its "Exif" prefix.

    Raises ValueError or struct.error when it is none.
    """
    return read_tags(io.BytesIO(block.removeprefix(b"Exif\0\0")))


def read_tags(file: BinaryIO, main_at: int | None = None) -> Tags:
    """The tags of a TIFF file or block; ``main_at`` is the main directory's place if not first."""
    file.seek(0)
    head = file.read(16)
    order = {b"II": "<", b"MM": ">"}.get(head[:2])
    if order is None or len(head) < 8:
        raise ValueError("no TIFF header")
    is_big = struct.unpack(f"{order}H", head[2:4])[0] == 43
    if main_at is None:
        (main_at,) = struct.unpack_from(
            f"{order}Q" if is_big else f"{order}I", head, 8 if is_big else 4
        )
    damaged = 0

    def directory(at: float | None) -> Directory:
        nonlocal damaged
        if at is None:
            return {}
        try:
            found, lost = _read_directory(file, order, is_big, int(at))
        except (struct.error, OSError, ValueError, OverflowError):
            found, lost = {}, 1
        damaged += lost
        return found

    def pointer(parent: Directory, tag: int) -> float | None:
        return _number(parent[tag], order) if tag in parent else None

    main = directory(main_at)
    exif = directory(pointer(main, EXIF))
    gps = directory(pointer(main, GPS))
    return Tags(order, main, exif, gps, directory(pointer(exif, INTEROP)), damaged)


def describing(tags: Tags) -> tuple[Tags, list[str]]:
    """The tags that describe the photo rather than the file, and what had to be left out."""
    main = {tag: value for tag, value in tags.main.items() if tag in _DESCRIPTIONS}
    exif = {tag: value for tag, value in tags.exif.items() if tag not in (MAKER_NOTE, INTEROP)}
    unknown = tags.main.keys() - main.keys() - _STRUCTURE - {EXIF, GPS}
    for tag, value in tags.main.items():
        if tag in (ORIENTATION, X_RESOLUTION, Y_RESOLUTION, RESOLUTION_UNIT):
            main[tag] = value
    # "R98" is sRGB; another name here is of a color space that the photo no longer has.
    interop = tags.interop if tags.interop.get(1, Tag(0, 0, b""))[2][:3] == b"R98" else {}
    lost = [f"EXIF tags {', '.join(map(str, sorted(unknown)))}"] if unknown else []
    if MAKER_NOTE in tags.exif or MAKER_NOTE in tags.main:
        lost.append("the camera maker's notes")
    if tags.damaged:
        lost.append(f"{tags.damaged} damaged EXIF tags")
    lost = [what for what in lost if what != f"EXIF tags {MAKER_NOTE}"]
    return replace(tags, main=main, exif=exif, interop=interop, damaged=0), lost


def corrected(tags: Tags, size: tuple[int, int], dpi: tuple[float, float] | None) -> Tags:
    """The tags of the upright sRGB result of (height, width), with its resolution if known."""
    order = tags.order
    main, exif = dict(tags.main), dict(tags.exif)
    if ORIENTATION in main:
        main[ORIENTATION] = short(order, 1)
    for tag in (X_RESOLUTION, Y_RESOLUTION, RESOLUTION_UNIT):
        main.pop(tag, None)
    if dpi:
        main[X_RESOLUTION], main[Y_RESOLUTION] = (rational(order, value) for value in dpi)
        main[RESOLUTION_UNIT] = short(order, 2)
    if COLOR_SPACE in exif:
        exif[COLOR_SPACE] = short(order, 1)
    for tag, side in ((PIXEL_HEIGHT, size[0]), (PIXEL_WIDTH, size[1])):
        if tag in exif:
            exif[tag] = long(order, side)
    return replace(tags, main=main, exif=exif)


def short(order: str, *values: int) -> Tag:
    return Tag(SHORT, len(values), struct.pack(f"{order}{len(values)}H", *values))


def long(order: str, *values: int) -> Tag:
    return Tag(LONG, len(values), struct.pack(f"{order}{len(values)}I", *values))


def rational(order: str, value: float) -> Tag:
    fraction = Fraction(value).limit_denominator(10000)
    return Tag(RATIONAL, 1, struct.pack(f"{order}2I", *fraction.as_integer_ratio()))


def undefined(data: bytes, kind: int = UNDEFINED) -> Tag:
    return Tag(kind, len(data), data)


def write_block(tags: Tags) -> bytes:
    """An EXIF block without the "Exif" prefix; as a TIFF file's beginning, its header and tags."""
    order = tags.order
    main, exif = dict(tags.main), dict(tags.exif)
    if exif or tags.interop:
        main[EXIF] = long(order, 0)
    if tags.gps:
        main[GPS] = long(order, 0)
    if tags.interop:
        exif[INTEROP] = long(order, 0)
    exif_at = 8 + _size(main)
    gps_at = exif_at + (_size(exif) if EXIF in main else 0)
    interop_at = gps_at + (_size(tags.gps) if tags.gps else 0)
    if EXIF in main:
        main[EXIF] = long(order, exif_at)
    if GPS in main:
        main[GPS] = long(order, gps_at)
    if INTEROP in exif:
        exif[INTEROP] = long(order, interop_at)
    block = (b"II" if order == "<" else b"MM") + struct.pack(f"{order}HI", 42, 8)
    block += _directory_bytes(main, order, 8)
    for directory, at in ((exif, exif_at), (tags.gps, gps_at), (tags.interop, interop_at)):
        if directory:
            block += _directory_bytes(directory, order, at)
    return block


def _read_directory(file: BinaryIO, order: str, is_big: bool, at: int) -> tuple[Directory, int]:
    """The tags of a directory, and how many of them cannot be read."""
    layout, count_layout = ("HHQ8s", "Q") if is_big else ("HHI4s", "H")
    file.seek(at)
    (count,) = struct.unpack(f"{order}{count_layout}", file.read(8 if is_big else 2))
    size = struct.calcsize(f"{order}{layout}")
    entries = file.read(min(count, 65535) * size)
    found: Directory = {}
    for tag, kind, number, value in struct.iter_unpack(
        f"{order}{layout}", entries[: len(entries) // size * size]
    ):
        length = _SIZES.get(kind, 0) * number
        if 0 < length <= len(value):
            found[tag] = Tag(kind, number, value[:length])
        elif len(value) < length < _LARGEST:
            file.seek(struct.unpack(f"{order}{'Q' if is_big else 'I'}", value)[0])
            data = file.read(length)
            if len(data) == length:
                found[tag] = Tag(kind, number, data)
    return found, min(count, 65535) - len(found)


def _number(tag: Tag, order: str) -> float | None:
    kinds = {1: "B", 3: "H", 4: "I", 5: "2I", 6: "b", 8: "h", 9: "i", 10: "2i", 11: "f", 12: "d"}
    kinds |= {13: "I", 16: "Q", 17: "q", 18: "Q"}
    if tag.kind not in kinds:
        return None
    layout = f"{order}{kinds[tag.kind]}"
    values = struct.unpack(layout, tag.data[: struct.calcsize(layout)])
    if len(values) == 1:
        return float(values[0])
    return values[0] / values[1] if values[1] else None


def _size(directory: Directory) -> int:
    outside = (len(tag.data) for tag in directory.values() if len(tag.data) > 4)
    return 2 + 12 * len(directory) + 4 + sum(length + length % 2 for length in outside)


def _directory_bytes(directory: Directory, order: str, at: int) -> bytes:
    entries, outside = struct.pack(f"{order}H", len(directory)), b""
    outside_at = at + 2 + 12 * len(directory) + 4
    for number, (kind, count, data) in sorted(directory.items()):
        entries += struct.pack(f"{order}HHI", number, kind, count)
        if len(data) <= 4:
            entries += data.ljust(4, b"\0")
        else:
            entries += struct.pack(f"{order}I", outside_at + len(outside))
            outside += data + bytes(len(data) % 2)
    return entries + bytes(4) + outside
