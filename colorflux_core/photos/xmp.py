"""XMP packets: what stays true of a result, and how it was made.

A colorized picture says so in the file. ``Iptc4xmpExt:DigitalSourceType`` is IPTC's
``compositeWithTrainedAlgorithmicMedia``: a real photograph, with parts (here its colors, or its
restored detail) that a generative model made up. ``trainedAlgorithmicMedia`` would say that the
whole picture was made up, and ``algorithmicallyEnhanced`` that no generative model was at work.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timezone
from xml.dom import minidom
from xml.dom.minidom import Document, Element
from xml.parsers.expat import ExpatError

from .. import VERSION

SOURCE_TYPE = "http://cv.iptc.org/newscodes/digitalsourcetype/compositeWithTrainedAlgorithmicMedia"
SOFTWARE = f"ColorFLUX {VERSION}"

NAMESPACES = {
    "rdf": "http://www.w3.org/1999/02/22-rdf-syntax-ns#",
    "xmp": "http://ns.adobe.com/xap/1.0/",
    "xmpMM": "http://ns.adobe.com/xap/1.0/mm/",
    "stEvt": "http://ns.adobe.com/xap/1.0/sType/ResourceEvent#",
    "Iptc4xmpExt": "http://iptc.org/std/Iptc4xmpExt/2008-02-29/",
    "tiff": "http://ns.adobe.com/tiff/1.0/",
    "exif": "http://ns.adobe.com/exif/1.0/",
    "dc": "http://purl.org/dc/elements/1.1/",
    "photoshop": "http://ns.adobe.com/photoshop/1.0/",
}
_XMLNS = "http://www.w3.org/2000/xmlns/"
_MIME = {"JPEG": "image/jpeg", "PNG": "image/png", "TIFF": "image/tiff", "WEBP": "image/webp"}
_EMPTY = (
    '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="{rdf}"></rdf:RDF></x:xmpmeta>'
).format(**NAMESPACES)
_PACKET = re.compile(rb"^\s*<\?xpacket begin=.*?\?>|<\?xpacket end=.*?\?>\s*$", re.DOTALL)
# Properties of the file that was scanned, which are not true of the result.
_WRONG = [
    *(("tiff", name) for name in ("ImageWidth", "ImageLength", "BitsPerSample", "Compression")),
    *(("tiff", name) for name in ("PhotometricInterpretation", "SamplesPerPixel")),
    *(("tiff", name) for name in ("XResolution", "YResolution", "ResolutionUnit")),
    *(("exif", name) for name in ("PixelXDimension", "PixelYDimension")),
    *(("photoshop", name) for name in ("ICCProfile", "ColorMode")),
    ("xmp", "Thumbnails"),
]
_CORRECTED = {("tiff", "Orientation"): "1", ("exif", "ColorSpace"): "1"}


class DamagedXmp(ValueError):
    """The packet is no XML, or has no RDF."""


@dataclass(frozen=True)
class Provenance:
    """How a result was made.

    Attributes:
        action: A past participle, such as "colorized".
        model: Name and version.
        parameters: Seed and settings, as text.
        when: ISO 8601, with the time zone; by default now.
    """

    action: str
    model: str
    parameters: str
    when: str = ""


def with_provenance(packet: bytes, made: Provenance) -> bytes:
    """The packet, which may be empty, that says how the picture was made; nothing else is lost.

    Raises DamagedXmp.
    """
    document = _parse(packet or _EMPTY.encode())
    when = made.when or datetime.now(timezone.utc).astimezone().isoformat(timespec="seconds")
    parameters = f"model: {made.model}; {made.parameters}"
    for prefix, name, value in (
        ("Iptc4xmpExt", "DigitalSourceType", SOURCE_TYPE),
        ("xmp", "CreatorTool", SOFTWARE),
    ):
        before = _set(document, prefix, name, value)
        if before and before != value:
            parameters += f"; {name} before: {before}"
    _set(document, "xmp", "MetadataDate", when)
    event = {
        "action": made.action,
        "when": when,
        "softwareAgent": SOFTWARE,
        "parameters": parameters,
    }
    _append_event(document, event)
    return _packet(document)


def corrected_packet(packet: bytes, file_format: str) -> bytes:
    """The packet without what is not true of an upright sRGB result; damaged ones stay as is."""
    try:
        document = _parse(packet)
    except DamagedXmp:
        return packet
    for prefix, name in _WRONG:
        _remove(document, prefix, name)
    for (prefix, name), value in _CORRECTED.items():
        if _value(document, prefix, name):
            _set(document, prefix, name, value)
    if _value(document, "dc", "format"):
        _set(document, "dc", "format", _MIME[file_format])
    return _packet(document)


def is_sound(packet: bytes) -> bool:
    try:
        _parse(packet)
    except DamagedXmp:
        return False
    return True


def _parse(packet: bytes) -> Document:
    text = _PACKET.sub(b"", packet) if b"<?xpacket" in packet else packet
    if b"<!DOCTYPE" in text or b"<!ENTITY" in text:
        raise DamagedXmp("an XMP packet has no document type")
    try:
        document = minidom.parseString(text.strip(b"\0 \r\n\t"))
    except (ExpatError, ValueError, LookupError) as error:
        raise DamagedXmp(str(error)) from error
    if not document.getElementsByTagNameNS(NAMESPACES["rdf"], "RDF"):
        raise DamagedXmp("no RDF")
    return document


def _packet(document: Document) -> bytes:
    # minidom writes line breaks in attributes as they are, and a parser would read spaces.
    for element in document.getElementsByTagName("*"):
        for attribute in element.attributes.values():
            attribute.value = attribute.value.replace("\n", "\ue00a").replace("\t", "\ue009")
    assert document.documentElement is not None
    text = document.documentElement.toxml().replace("\ue00a", "&#10;").replace("\ue009", "&#9;")
    head = '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>\n'
    return f'{head}{text}\n<?xpacket end="w"?>'.encode()


def _descriptions(document: Document) -> Iterator[Element]:
    for rdf in document.getElementsByTagNameNS(NAMESPACES["rdf"], "RDF")[:1]:
        for node in rdf.childNodes:
            if isinstance(node, Element) and node.localName == "Description":
                yield node


def _places(document: Document, prefix: str, name: str) -> Iterator[tuple[Element, Element | None]]:
    """(description, the property's element or None for an attribute), wherever it is set."""
    space = NAMESPACES[prefix]
    for description in list(_descriptions(document)):
        if description.hasAttributeNS(space, name):
            yield description, None
        for node in list(description.childNodes):
            if isinstance(node, Element) and (node.namespaceURI, node.localName) == (space, name):
                yield description, node


def _value(document: Document, prefix: str, name: str) -> str:
    for description, element in _places(document, prefix, name):
        if element is None:
            return description.getAttributeNS(NAMESPACES[prefix], name)
        texts = (node.data for node in element.childNodes if node.nodeType == node.TEXT_NODE)
        resource = element.getAttributeNS(NAMESPACES["rdf"], "resource")
        return resource or "".join(texts).strip()
    return ""


def _remove(document: Document, prefix: str, name: str) -> None:
    for description, element in _places(document, prefix, name):
        if element is None:
            description.removeAttributeNS(NAMESPACES[prefix], name)
        else:
            description.removeChild(element)


def _set(document: Document, prefix: str, name: str, value: str) -> str:
    """Set a simple property; returns the value before."""
    before = _value(document, prefix, name)
    _remove(document, prefix, name)
    element = _new(document, prefix, name)
    element.appendChild(document.createTextNode(value))
    _description(document).appendChild(element)
    return before


def _append_event(document: Document, event: dict[str, str]) -> None:
    space = NAMESPACES["rdf"]
    history = next((e for _, e in _places(document, "xmpMM", "History") if e is not None), None)
    if history is None:
        history = _new(document, "xmpMM", "History")
        _description(document).appendChild(history)
    sequences = [
        node
        for node in history.childNodes
        if isinstance(node, Element) and node.namespaceURI == space and node.localName == "Seq"
    ]
    if sequences:
        sequence = sequences[0]
    else:
        sequence = _new(document, "rdf", "Seq")
        history.appendChild(sequence)
    item = _new(document, "rdf", "li")
    rdf_prefix = item.prefix
    item.setAttributeNS(space, f"{rdf_prefix}:parseType", "Resource")
    item.setAttributeNS(_XMLNS, "xmlns:stEvt", NAMESPACES["stEvt"])
    for name, value in event.items():
        part = _new(document, "stEvt", name)
        part.appendChild(document.createTextNode(value))
        item.appendChild(part)
    sequence.appendChild(item)


def _description(document: Document) -> Element:
    """The description that new properties go to: one of our own, at the end."""
    rdf = document.getElementsByTagNameNS(NAMESPACES["rdf"], "RDF")[0]
    declared = [(prefix, space) for prefix, space in NAMESPACES.items() if prefix != "rdf"]
    for description in _descriptions(document):
        if all(description.getAttributeNS(_XMLNS, p) == space for p, space in declared):
            return description
    description = _new(document, "rdf", "Description")
    about = next(
        (d.getAttributeNS(NAMESPACES["rdf"], "about") for d in _descriptions(document)), ""
    )
    description.setAttributeNS(NAMESPACES["rdf"], f"{description.prefix}:about", about)
    for prefix, space in declared:
        description.setAttributeNS(_XMLNS, f"xmlns:{prefix}", space)
    rdf.appendChild(description)
    return description


def _new(document: Document, prefix: str, name: str) -> Element:
    if prefix == "rdf":  # The packet may have given it another prefix.
        rdf = document.getElementsByTagNameNS(NAMESPACES["rdf"], "RDF")[0]
        prefix = rdf.prefix or "rdf"
        return document.createElementNS(NAMESPACES["rdf"], f"{prefix}:{name}")
    return document.createElementNS(NAMESPACES[prefix], f"{prefix}:{name}")
