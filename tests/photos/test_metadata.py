"""What a scan says about itself is still there in the result, as ExifTool reads it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from colorflux_core.photos import exif
from colorflux_core.photos.photo import load_photo, save_photo
from colorflux_core.photos.xmp import SOFTWARE, SOURCE_TYPE, Provenance, with_provenance

MADE = Provenance("colorized", "nano version 1", "seed: 7; steps: 8", "2026-01-02T03:04:05+00:00")
HISTORY = {
    "XMP-xmpMM:HistoryAction": "colorized",
    "XMP-xmpMM:HistorySoftwareAgent": SOFTWARE,
    "XMP-xmpMM:HistoryParameters": "model: nano version 1; seed: 7; steps: 8",
    "XMP-iptcExt:DigitalSourceType": SOURCE_TYPE,
    "XMP-xmp:CreatorTool": SOFTWARE,
}
TAGS = {
    "IFD0:Artist": "José Müller",
    "IFD0:Copyright": "© 1950 Stadtarchiv Köln",
    "IFD0:ImageDescription": "Großmutter 祖母",
    "IFD0:DocumentName": "Inv. 1950/123",
    "IFD0:HostComputer": "scanner",
    "IFD0:XPTitle": "Título",
    "IFD0:XPComment": "コメント",
    "IFD0:XPKeywords": "family;1950",
    "IFD0:Rating": "5",
    "ExifIFD:DateTimeOriginal": "1950:06:01 12:00:00",
    "ExifIFD:UserComment": "unicode 祖母",
    "GPS:GPSLatitude": "50.94",
    "GPS:GPSLatitudeRef": "N",
    "XMP-dc:Title": "Oma",
    "XMP-dc:Rights": "© Köln",
    "XMP-xmp:Rating": "5",
    "XMP-photoshop:Instructions": "first\nsecond",
    "IPTC:ObjectName": "Oma",
    "IPTC:By-line": "José",
    "IPTC:CodedCharacterSet": "UTF8",
    "IFD0:XResolution": "600",
    "IFD0:YResolution": "600",
    "IFD0:ResolutionUnit": "inches",
}
WRONG = {
    "IFD0:Orientation": "6",
    "ExifIFD:ExifImageWidth": "9999",
    "ExifIFD:ExifImageHeight": "9999",
    "ExifIFD:ColorSpace": "65535",
    "XMP-tiff:Orientation": "6",
    "XMP-tiff:ImageWidth": "9999",
}
SUFFIXES = (".jpg", ".png", ".tif", ".webp")

exiftool = pytest.mark.skipif(
    shutil.which("exiftool") is None, reason="ExifTool is not installed (libimage-exiftool-perl)"
)


def tags_of(path: Path) -> dict[str, Any]:
    command = ["exiftool", "-json", "-G1", "-a", "-s", "-n", str(path)]
    output = subprocess.run(command, capture_output=True, check=True).stdout
    (found,) = json.loads(output)
    return dict(found)


def tagged(path: Path) -> Path:
    samples = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)
    Image.fromarray(samples).save(path)
    values = {**TAGS, **WRONG, "IFD0:ResolutionUnit": "2"}
    words = [f"-{name}={value}" for name, value in values.items() if "WebP" not in name]
    command = ["exiftool", "-n", "-q", "-m", "-overwrite_original", "-codedcharacterset=utf8"]
    subprocess.run(
        [*command, "-charset", "iptc=UTF8", "-charset", "exif=UTF8", *words, str(path)], check=True
    )
    os.utime(path, ns=(10**18, 10**18))
    return path


@exiftool
@pytest.mark.parametrize("source", SUFFIXES)
@pytest.mark.parametrize("target", SUFFIXES)
def test_nothing_is_lost_but_what_must_change(tmp_path: Path, source: str, target: str) -> None:
    before = tagged(tmp_path / f"in{source}")
    photo = load_photo(before)
    assert photo.size == (30, 20)  # Orientation 6 is applied.
    assert photo.dpi == pytest.approx((600, 600), rel=1e-4)
    after = tmp_path / f"out{target}"
    lost = save_photo(after, photo.rgb, photo, provenance=MADE)
    old, new = tags_of(before), tags_of(after)
    groups = ("IFD0", "ExifIFD", "GPS", "IPTC", "XMP-dc", "XMP-xmp", "XMP-photoshop")
    changed = {
        name
        for name, value in old.items()
        if name.startswith(groups) and str(new.get(name)) != str(value)
    }
    expected = {"IFD0:Orientation", "ExifIFD:ExifImageWidth", "ExifIFD:ExifImageHeight"}
    expected |= {"ExifIFD:ColorSpace"}
    structure = {"IFD0:YCbCrPositioning"}
    if source == ".tif":
        structure |= {name for name in changed if name.split(":")[1] in TIFF_STRUCTURE}
    if target == ".webp":
        iptc = {name for name in old if name.startswith("IPTC")}
        assert ("IPTC dropped" in lost) == bool(iptc)
        expected |= iptc
    assert changed - structure == expected & old.keys()
    assert new["IFD0:Orientation"] == 1
    assert (new["ExifIFD:ExifImageWidth"], new["ExifIFD:ExifImageHeight"]) == (20, 30)
    assert new["ExifIFD:ColorSpace"] == 1
    assert "XMP-tiff:ImageWidth" not in new and new["XMP-tiff:Orientation"] == 1
    assert HISTORY.items() <= new.items()
    assert after.stat().st_mtime_ns == 10**18


TIFF_STRUCTURE = {
    *("ImageWidth", "ImageHeight", "BitsPerSample", "Compression", "PhotometricInterpretation"),
    *("StripOffsets", "StripByteCounts", "SamplesPerPixel", "RowsPerStrip"),
    *("PlanarConfiguration", "SampleFormat", "Predictor", "SubfileType"),
}


@exiftool
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_provenance_in_a_file_that_said_nothing(tmp_path: Path, suffix: str) -> None:
    save_photo(tmp_path / f"a{suffix}", torch.rand(3, 8, 8), provenance=MADE)
    found = tags_of(tmp_path / f"a{suffix}")
    assert HISTORY.items() <= found.items()
    save_photo(tmp_path / f"b{suffix}", torch.rand(3, 8, 8))
    assert not [name for name in tags_of(tmp_path / f"b{suffix}") if name.startswith("XMP")]


@exiftool
def test_a_second_run_adds_to_the_history(tmp_path: Path) -> None:
    restored = Provenance("restored", "S3Diff", "scale: 2", "2026-01-01T00:00:00+00:00")
    save_photo(tmp_path / "a.jpg", torch.rand(3, 8, 8), provenance=restored)
    photo = load_photo(tmp_path / "a.jpg")
    save_photo(tmp_path / "b.png", photo.rgb, photo, provenance=MADE)
    assert tags_of(tmp_path / "b.png")["XMP-xmpMM:HistoryAction"] == ["restored", "colorized"]


@exiftool
def test_what_exiftool_validates(tmp_path: Path) -> None:
    photo = load_photo(tagged(tmp_path / "in.jpg"))
    for suffix in SUFFIXES:
        path = tmp_path / f"out{suffix}"
        save_photo(path, photo.rgb, photo, provenance=MADE)
        command = ["exiftool", "-validate", "-error", "-s3", str(path)]
        output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        assert "Error" not in output


def packet(properties: str) -> bytes:
    return (
        '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>'
        '<x:xmpmeta xmlns:x="adobe:ns:meta/">'
        '<r:RDF xmlns:r="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
        f"{properties}</r:RDF></x:xmpmeta><?xpacket end='w'?>"
    ).encode()


def test_a_packet_keeps_what_it_says_in_any_spelling() -> None:
    properties = (
        '<r:Description r:about="uuid:1" xmlns:q="http://example.org/q/" q:note="a &amp; b&#10;c"'
        ' xmlns:a="http://ns.adobe.com/xap/1.0/" a:CreatorTool="Scan 9"'
        ' xmlns:m="http://ns.adobe.com/xap/1.0/mm/"'
        ' xmlns:e="http://ns.adobe.com/xap/1.0/sType/ResourceEvent#">'
        '<m:History><r:Seq><r:li e:action="created"/></r:Seq></m:History><!-- kept -->'
        "</r:Description>"
    )
    result = with_provenance(packet(properties), MADE).decode()
    for part in ('q:note="a &amp; b&#10;c"', '<r:li e:action="created"/>', "<!-- kept -->"):
        assert part in result
    assert result.count("<m:History>") == 1 and "xmpMM:History>" not in result
    assert result.count('about="uuid:1"') == 2
    assert "CreatorTool before: Scan 9" in result and "a:CreatorTool" not in result
    assert result.count(SOURCE_TYPE) == 1
    again = with_provenance(result.encode(), MADE).decode()
    assert again.count(SOURCE_TYPE) == 1 and again.count("colorized") == 2


@pytest.mark.parametrize(
    "damaged", [b"<x", b"<a/>", b"<!DOCTYPE a [<!ENTITY b 'c'>]><a>&b;</a>", b"\xff\xfe\x00"]
)
def test_damaged_xmp_is_replaced_with_a_remark(tmp_path: Path, damaged: bytes) -> None:
    Image.new("L", (8, 8)).save(tmp_path / "a.webp", xmp=damaged)
    photo = load_photo(tmp_path / "a.webp")
    lost = save_photo(tmp_path / "b.png", photo.rgb, photo, provenance=MADE)
    assert lost == ["damaged XMP dropped"]
    assert SOURCE_TYPE.encode() in load_photo(tmp_path / "b.png").metadata.xmp


def test_xmp_that_a_jpeg_cannot_hold_goes_to_a_sidecar(tmp_path: Path) -> None:
    large = packet('<r:Description><q:a xmlns:q="q">' + "x" * 70000 + "</q:a></r:Description>")
    Image.new("L", (8, 8)).save(tmp_path / "a.webp", xmp=large)
    photo = load_photo(tmp_path / "a.webp")
    lost = save_photo(tmp_path / "b.jpg", photo.rgb, photo, provenance=MADE)
    assert lost == ["XMP too large, in b.jpg.xmp"]
    sidecar = (tmp_path / "b.jpg.xmp").read_bytes()
    assert b"x" * 70000 in sidecar and SOURCE_TYPE.encode() in sidecar
    assert not load_photo(tmp_path / "b.jpg").metadata.xmp


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_resolution_is_kept_and_never_invented(tmp_path: Path, suffix: str) -> None:
    Image.new("L", (8, 6)).save(tmp_path / "none.png")
    Image.new("L", (8, 6)).save(tmp_path / "300.png", dpi=(300, 150))
    for name, dpi in (("none", None), ("300", (300, 150))):
        photo = load_photo(tmp_path / f"{name}.png")
        save_photo(tmp_path / f"out{suffix}", photo.rgb, photo)
        found = load_photo(tmp_path / f"out{suffix}").dpi
        assert found == (pytest.approx(dpi, rel=1e-3) if dpi else None)
    photo = load_photo(tmp_path / "300.png")
    save_photo(tmp_path / f"twice{suffix}", torch.rand(3, 12, 16), photo)
    assert load_photo(tmp_path / f"twice{suffix}").dpi == pytest.approx((600, 300), rel=1e-3)


def test_an_exif_block_without_resolution_gets_none(tmp_path: Path) -> None:
    block = Image.Exif()
    block[315] = "Ansel"
    Image.new("L", (8, 6)).save(tmp_path / "a.jpg", exif=block)
    assert load_photo(tmp_path / "a.jpg").dpi is None


@pytest.mark.parametrize("order", "<>")
def test_exif_of_unexpected_types_stays_as_it_is(tmp_path: Path, order: str) -> None:
    odd = {
        315: exif.rational(order, 1.5),
        305: exif.Tag(11, 1, b"\0\0\x80\x3f"),
        33432: exif.Tag(exif.ASCII, 5, b"\xa9\xff\x80x\0"),
        282: exif.Tag(exif.ASCII, 2, b"x\0"),
    }
    block = exif.write_block(exif.Tags(order, odd))
    Image.new("L", (8, 6)).save(tmp_path / "a.jpg", exif=b"Exif\0\0" + block)
    photo = load_photo(tmp_path / "a.jpg")
    for suffix in SUFFIXES:
        save_photo(tmp_path / f"out{suffix}", photo.rgb, photo)
        again = load_photo(tmp_path / f"out{suffix}").metadata.exif
        assert {tag: again.main[tag] for tag in (305, 315, 33432)} == {
            tag: value for tag, value in odd.items() if tag != 282
        }


def test_damaged_exif_is_left_out_with_a_remark(tmp_path: Path) -> None:
    Image.new("L", (8, 6)).save(tmp_path / "a.jpg", exif=b"Exif\0\0not a block at all")
    assert load_photo(tmp_path / "a.jpg").remarks == ("damaged EXIF left out",)
    tags = exif.write_block(exif.Tags("<", {315: exif.Tag(exif.ASCII, 6, b"Ansel\0")}))
    Image.new("L", (8, 6)).save(tmp_path / "b.jpg", exif=b"Exif\0\0" + tags[:-4])
    assert load_photo(tmp_path / "b.jpg").remarks == ("1 damaged EXIF tags left out",)
