"""``training.prepare``: which photos pass and why others do not, whatever stops it on the way."""

from __future__ import annotations

import csv
import json
import multiprocessing
import os
import pickle
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from colorflux_core.errors import ColorFluxError
from colorflux_core.photos.finding import files_in
from colorflux_core.photos.png import profile_chunk, write_sixteen_bit
from colorflux_core.photos.profiles import srgb_profile
from tests.training.tiny_training import synthetic_photo
from training.data.manifest import read_manifest
from training.photos.choose import Filters, choose, exclusion_reasons
from training.photos.duplicates import first_duplicates
from training.photos.files import PhotoFile
from training.photos.measure import (
    JOURNAL,
    Measurement,
    MeasurementDataset,
    iter_measurements,
    measure,
)
from training.photos.sheet import COLUMNS, contact_sheet
from training.prepare import main

SMALL = ("--min_side", "30", "--workers", "1")


def prepare(*arguments: str | Path) -> None:
    main([*map(str, arguments), *SMALL])


def rows(file: Path) -> dict[str, dict[str, str]]:
    with file.open(newline="", encoding="utf-8") as lines:
        return {row.pop("file"): row for row in csv.DictReader(lines)}


def results(output: Path) -> list[bytes]:
    return [
        (output / name).read_bytes() for name in ("photos.csv", "rejected.csv", "contact-sheet.jpg")
    ]


def journaled(output: Path) -> list[str]:
    """Names of the photos that were measured, once for each time."""
    names = []
    if (output / JOURNAL).exists():
        for line in (output / JOURNAL).read_text(encoding="utf-8").splitlines():
            with suppress(ValueError):
                names.append(json.loads(line)["photo"]["file"])
    return names


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Twelve photos to train on."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for seed in range(12):
        synthetic_photo(seed).save(folder / f"{seed:02}.png")
    return folder


def test_files_of_every_kind(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def new(seed: int) -> Image.Image:
        return synthetic_photo(100 + seed)

    whole = (photos / "00.png").read_bytes()
    (photos / "cut.png").write_bytes(whole[: len(whole) // 2])
    (photos / "empty.jpg").touch()
    (photos / "text.jpg").write_text("not a photo")
    (photos / "notes.txt").write_text("not a photo either")
    (photos / "gone.jpg").symlink_to(tmp_path / "nowhere.jpg")
    (photos / ".hidden.png").write_bytes(whole)
    (photos / "01-again.tif").symlink_to(photos / "01.png")
    synthetic_photo(2).save(photos / "02-again.bmp.tif")
    synthetic_photo(3).resize((120, 96)).save(photos / "03-large.png")
    synthetic_photo(4).resize((45, 36)).save(photos / "04-small.png")
    synthetic_photo(5).convert("L").resize((120, 96)).save(photos / "05-gray.png")
    new(0).crop((0, 0, 60, 29)).save(photos / "tiny.png")
    new(1).convert("L").save(photos / "gray.jpg")
    new(2).convert("CMYK").save(photos / "cmyk.jpg", quality=95)
    new(3).convert("RGBA").save(photos / "alpha.webp", lossless=True)
    new(4).quantize(32).save(photos / "palette.png")
    Image.fromarray(np.asarray(new(5).convert("L")).astype(np.uint16) * 257).save(photos / "16.tif")
    (photos / "sub").mkdir()
    new(6).save(photos / "sub" / 'photo, of "sub".png')

    prepare(photos, "-o", tmp_path / "data")

    assert {
        file.removeprefix("../photos/"): row["reason"]
        for file, row in rows(tmp_path / "data" / "rejected.csv").items()
    } == {
        "cut.png": "cannot be read",
        "empty.jpg": "cannot be read",
        "text.jpg": "cannot be read",
        "notes.txt": "not a photo",
        "gone.jpg": "not a photo",
        "01.png": "the same pixels as another",
        "02.png": "the same pixels as another",
        "03.png": "the same picture as another",
        "04-small.png": "the same picture as another",
        "05-gray.png": "the same picture as another",
        "tiny.png": "a side below 30 pixels",
    }

    manifest = rows(tmp_path / "data" / "photos.csv")
    assert len(manifest) == 12 + 6  # where a photo has copies, one of them is there
    assert (tmp_path / "data" / '../photos/sub/photo, of "sub".png').is_file()
    stages = {
        file.removeprefix("../photos/"): (row["structure"], row["basic_color"], row["pro_dpo"])
        for file, row in manifest.items()
    }
    assert {file for file, uses in stages.items() if uses != ("yes", "yes", "yes")} == {
        "gray.jpg",
        "16.tif",
    }
    assert stages["gray.jpg"] == stages["16.tif"] == ("yes", "no", "no")
    summary = [line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines()]
    assert ["18", "structure"] in summary
    assert ["16", "basic_color"] in summary
    assert ["2", "not for pro_dpo: colorfulness below 15"] in summary
    assert ["3", "rejected: cannot be read"] in summary


def flat(width: int = 40, height: int = 30) -> Image.Image:
    """Its S is 1/2, V 200/255 and colorfulness 0.3 |(100, 50)|."""
    return Image.new("RGB", (width, height), (200, 100, 100))


def save_turned(path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    flat(30, 40).save(path, exif=exif)


def save_16_bits(path: Path) -> None:
    samples = np.asarray(flat()).astype(np.uint16) * 257
    with path.open("wb") as file:
        write_sixteen_bit(file, samples, [profile_chunk("sRGB", srgb_profile())])


def save_half_clear(path: Path) -> None:
    """The flat color once it lies on white."""
    Image.new("RGBA", (40, 30), (167, 8, 8, 160)).save(path)


def save_cmyk(path: Path) -> None:
    Image.new("CMYK", (40, 30), (55, 155, 155, 0)).save(path)


@pytest.mark.parametrize(
    ("name", "save"),
    [
        ("plain.png", lambda path: flat().save(path)),
        ("palette.png", lambda path: flat().quantize(8).save(path)),
        ("large.png", lambda path: flat(1600, 1200).save(path)),
        ("turned.jpg", save_turned),
        ("16.png", save_16_bits),
        ("half_clear.png", save_half_clear),
        ("cmyk.tif", save_cmyk),
    ],
)
def test_what_is_measured_of_a_flat_color(
    name: str, save: Callable[[Path], None], tmp_path: Path
) -> None:
    save(tmp_path / name)
    measurement = measure(tmp_path, PhotoFile(name, 1, 1))
    assert not measurement.fault
    assert measurement.width * 3 == measurement.height * 4
    assert measurement.colorfulness == pytest.approx(0.3 * np.hypot(100, 50), abs=0.5)
    assert measurement.saturation == pytest.approx(0.5, abs=0.005)
    assert measurement.value == pytest.approx(200 / 255, abs=0.003)


def test_content_is_of_the_pixels_not_of_the_file(tmp_path: Path) -> None:
    synthetic_photo(0).save(tmp_path / "a.png")
    synthetic_photo(0).save(tmp_path / "b.tif")
    flat(40, 30).save(tmp_path / "c.png")
    flat(30, 40).save(tmp_path / "d.png")
    a, b, c, d = (
        measure(tmp_path, PhotoFile(name, 1, 1)).content
        for name in ("a.png", "b.tif", "c.png", "d.png")
    )
    assert a == b
    assert len({a, c, d}) == 3


PERFECT = {"colorfulness": 50.0, "saturation": 0.5, "value": 0.6}


def measurement(name: str = "a", side: int = 500, size: int = 1, **changes: Any) -> Measurement:
    """Of a photo that every stage can use, and that no other name's is like."""
    random = np.random.default_rng(list(name.encode()))
    unlike = {"content": random.bytes(32).hex(), "looks": random.bytes(32).hex()}
    known: dict[str, Any] = {"width": side, "height": side, **PERFECT, **unlike, **changes}
    return Measurement(PhotoFile(name, size, 1), **known)


@pytest.mark.parametrize(
    ("values", "basic_color", "pro_dpo"),
    [
        ({"colorfulness": 15.0}, "", ""),
        ({"colorfulness": 14.99}, "colorfulness below 15", "colorfulness below 15"),
        ({"saturation": 0.3}, "", ""),
        ({"saturation": 0.2999}, "", "saturation below 0.3"),
        ({"saturation": 0.7}, "", ""),
        ({"saturation": 0.7001}, "", "saturation above 0.7"),
        ({"value": 0.4}, "", ""),
        ({"value": 0.3999}, "", "value below 0.4"),
        ({"value": 0.8}, "", ""),
        ({"value": 0.8001}, "", "value above 0.8"),
    ],
)
def test_the_papers_filters(values: dict[str, Any], basic_color: str, pro_dpo: str) -> None:
    reasons = exclusion_reasons(measurement(**values), Filters())
    assert reasons == {"structure": "", "basic_color": basic_color, "pro_dpo": pro_dpo}


def kept(measurements: list[Measurement], **filters: Any) -> set[str]:
    accepted, rejected = choose(measurements, Filters(**filters))
    assert len(accepted) + len(rejected) == len(measurements)
    return {photo.file for photo in accepted}


@pytest.mark.parametrize(
    ("worse", "better"),
    [
        ({"colorfulness": 0.0, "side": 900}, {"colorfulness": 20.0}),
        ({"side": 500}, {"side": 501}),
        ({"size": 10}, {"size": 11}),
        ({}, {}),
    ],
)
@pytest.mark.parametrize("same", ["content", "looks"])
def test_the_best_of_copies_is_kept_in_any_order(
    worse: dict[str, Any], better: dict[str, Any], same: str
) -> None:
    shared = {key: getattr(measurement(), key) for key in ("looks", same)}
    copies = [measurement("b", **shared, **worse), measurement("a", **shared, **better)]
    assert kept(copies) == kept(copies[::-1]) == {"a"}


def test_a_photo_unfit_for_all_displaces_no_copy() -> None:
    shared: dict[str, Any] = {"content": "00" * 32, "looks": "00" * 32}
    narrow = measurement("a", width=100_000, height=200, **shared)
    assert kept([narrow, measurement("b", **shared)]) == {"b"}


def test_the_distance_of_duplicates() -> None:
    pair = [measurement("a", looks="00" * 32), measurement("b", looks="00" * 31 + "07")]
    assert kept(pair, duplicate_distance=3) == {"a"}
    assert kept(pair, duplicate_distance=2) == {"a", "b"}
    assert kept([*pair, measurement("c", content=pair[0].content)], duplicate_distance=-1) == {
        "a",
        "b",
    }


@pytest.mark.parametrize("distance", [-1, 0, 5, 24])
def test_likeness_is_that_of_a_plain_search(distance: int) -> None:
    random = np.random.default_rng(0)
    bits = random.integers(0, 2, (60, 192), dtype=np.uint8)
    bits = np.concatenate([bits, bits[random.integers(0, 60, 120)]])
    for photo in bits[60:]:
        photo[random.integers(0, 192, random.integers(0, 30))] ^= 1
    random.shuffle(bits)

    expected: list[int] = []
    for i, one in enumerate(bits):
        firsts = (j for j in range(i) if expected[j] == j and (bits[j] != one).sum() <= distance)
        expected.append(next(firsts, i))

    words = np.packbits(bits, axis=1).view(np.uint64)
    assert first_duplicates(words, distance).tolist() == expected


def split_of(measurements: list[Measurement], share: float) -> dict[str, str]:
    return {photo.file: photo.split for photo in choose(measurements, Filters(validation=share))[0]}


def test_splits_stay_when_photos_are_added() -> None:
    photos = [measurement(str(n)) for n in range(1200)]
    few, many = split_of(photos[:600], 0.1), split_of(photos[::-1], 0.1)
    assert few.items() <= many.items()
    assert 80 < list(many.values()).count("validation") < 160


def test_every_stage_has_photos_for_validation() -> None:
    usual = [measurement(str(n), saturation=0.1) for n in range(100)]
    good = [measurement(f"good {n}") for n in range(45)]
    before, after = split_of(usual + good[:40], 0.0), split_of(usual + good, 0.0)
    chosen = {file for file, split in after.items() if split == "validation"}
    assert sum(file.startswith("good") for file in chosen) == 8
    assert len(chosen) < 16
    assert all(before.get(file) != "train" for file in chosen)
    assert list(split_of(good[:10], 0.0).values()).count("validation") == 2


def test_a_second_run_measures_only_what_is_new(photos: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    prepare(photos, "-o", data)
    first = results(data)
    assert len(journaled(data)) == 12

    prepare(photos, "-o", data)
    assert results(data) == first
    assert len(journaled(data)) == 12

    synthetic_photo(50).save(photos / "03.png")
    synthetic_photo(51).save(photos / "new.png")
    prepare(photos, "-o", data, "--min_value", "0.2")
    assert sorted(journaled(data)[12:]) == ["../photos/03.png", "../photos/new.png"]
    assert rows(data / "photos.csv")["../photos/03.png"]["hash"] not in first[0].decode()


@pytest.mark.parametrize("share", [0.0, 0.1, 0.51, 0.9, 1.0])
def test_a_journal_cut_anywhere_is_gone_on_with(share: float, photos: Path, tmp_path: Path) -> None:
    prepare(photos, "-o", tmp_path / "whole")
    journal = (tmp_path / "whole" / JOURNAL).read_bytes()
    left = journal[: round(share * (len(journal) - 1))]
    (tmp_path / "cut").mkdir()
    (tmp_path / "cut" / JOURNAL).write_bytes(left)

    prepare(photos, "-o", tmp_path / "cut")

    assert results(tmp_path / "cut") == results(tmp_path / "whole")
    assert sorted(journaled(tmp_path / "cut")) == sorted(journaled(tmp_path / "whole"))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills a forked process")
def test_a_killed_run_is_gone_on_with(tmp_path: Path) -> None:
    photos, data = tmp_path / "photos", tmp_path / "data"
    photos.mkdir()
    for seed in range(30):
        synthetic_photo(seed).resize((1000, 800)).save(photos / f"{seed}.jpg")
    run = multiprocessing.get_context("fork").Process(target=prepare, args=(photos, "-o", data))
    run.start()
    while run.is_alive() and len(journaled(data)) < 5:
        time.sleep(0.005)
    run.kill()
    run.join()
    assert run.exitcode == -signal.SIGKILL
    assert 5 <= len(journaled(data)) < 30
    assert not (data / "photos.csv").exists()

    prepare(photos, "-o", data)
    prepare(photos, "-o", tmp_path / "whole")
    assert results(data) == results(tmp_path / "whole")
    assert sorted(journaled(data)) == sorted(journaled(tmp_path / "whole"))


class Killed(MeasurementDataset):
    def __getitem__(self, index: int) -> Measurement:
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError


def test_a_worker_that_was_killed_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ColorFluxError, match=r"reduce --workers \(1\)"):
        list(iter_measurements(Killed(tmp_path, [PhotoFile("a.jpg", 1, 1)]), 1))


def test_photos_to_measure_reach_workers_of_every_kind(photos: Path) -> None:
    measuring = MeasurementDataset(photos, [PhotoFile("00.png", 1, 1)])
    assert pickle.loads(pickle.dumps(measuring))[0] == measuring[0]


def test_training_reads_the_manifest(photos: Path, tmp_path: Path) -> None:
    data = tmp_path / "deep" / "data"
    prepare(photos, "-o", data)
    splits = {
        name: read_manifest(data / "photos.csv", data, name) for name in ("train", "validation")
    }
    assert [len(split) for split in splits.values()] == [10, 2]


def test_the_first_photos_by_name(photos: Path, tmp_path: Path) -> None:
    more = tmp_path / "more=2"
    (more / "b").mkdir(parents=True)
    synthetic_photo(20).save(more / "b" / "0.png")
    synthetic_photo(21).save(more / "c.png")
    prepare(f"{photos}=3", photos, more, f"{more}=1", "-o", tmp_path / "data")
    assert list(rows(tmp_path / "data" / "photos.csv")) == [
        *(f"../photos/{seed:02}.png" for seed in range(12)),
        "../more=2/b/0.png",
        "../more=2/c.png",
    ]
    prepare(f"{photos}=3", f"{more}=1", "-o", tmp_path / "data")
    assert len(rows(tmp_path / "data" / "photos.csv")) == 4


def test_links_in_a_circle_are_followed_once(photos: Path) -> None:
    (photos / "sub").mkdir()
    synthetic_photo(20).save(photos / "sub" / "20.png")
    (photos / "sub" / "back").symlink_to(photos)
    (photos / "twice").symlink_to(photos / "sub")
    assert len(files_in(photos)) == 13


def test_the_output_may_be_the_folder_of_photos(photos: Path) -> None:
    prepare(photos, "-o", photos)
    first = results(photos)
    prepare(photos, "-o", photos)
    assert results(photos) == first
    assert "00.png" in rows(photos / "photos.csv")
    assert not rows(photos / "rejected.csv")


def test_names_start_from_where_the_output_really_is(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "a" / "b")
    (tmp_path / "photo link").symlink_to(photos)
    prepare(tmp_path / "photo link", "-o", tmp_path / "link")
    for file in rows(tmp_path / "link" / "photos.csv"):
        assert (tmp_path / "link" / file).is_file()


def test_the_contact_sheet_is_bounded_and_shows_the_photos(tmp_path: Path) -> None:
    flat().save(tmp_path / "flat.png")
    one, many = (contact_sheet({"flat": [tmp_path / "flat.png"] * n}) for n in (1, 50))
    assert one.size == many.size
    colors = many.getcolors(many.width * many.height)
    assert colors is not None
    assert (COLUMNS * 40 * 30, (200, 100, 100)) in colors


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["nowhere", "-o", "data"], "nowhere is not a folder"),
        (["photos=0", "-o", "data"], "photos=0 has no photos"),
        (["empty", "-o", "data"], "empty has no photos"),
        (["photos"], "-o/--output"),
        (["-o", "data"], "FOLDER"),
        (["photos", "-o", "photos/00.png"], "photos/00.png"),
        (["photos", "-o", "data", "--min_sides", "3"], "did you mean --min-side?"),
        (["photos", "-o", "data", "--min_side", "small"], "--min-side"),
        (["photos", "-o", "data", "--validation", "1.5"], "--validation"),
        (["photos", "-o", "data", "--workers", "-1"], "--workers"),
        (["photos", "-o", "data", "--min_value", "0.9"], "--min-value"),
        (["photos", "-o", "data", "--min_side", "1000"], "rejected.csv"),
    ],
)
def test_what_makes_no_sense_is_refused(
    arguments: list[str], told: str, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(photos.parent)
    Path("empty").mkdir()
    with pytest.raises(ColorFluxError) as refused:
        main(arguments)
    assert told in str(refused.value)
    assert "\n" not in str(refused.value)
    assert not Path("data", "photos.csv").exists()
