"""From folders of results to a study that gives no method away."""

from __future__ import annotations

import json
import shutil
import socket
from pathlib import Path

import pytest
from PIL import Image

from colorflux_core.errors import ColorFluxError
from colorflux_core.evaluation.__main__ import main
from colorflux_core.evaluation.benchmark.methods import Method
from colorflux_core.evaluation.benchmark.sets import MANIFEST, Row
from colorflux_core.evaluation.rows import write_rows
from colorflux_core.evaluation.study.create import create_study, shrunk
from colorflux_core.evaluation.study.study import Study, picture_ids, picture_path, read_study
from tests.cli.command_runs import Run, refused, result_of
from tests.evaluation.study.study_runs import bench, results

IMAGES = {"wide": (60, 40), "tall": (40, 60)}
REDS = {"ours": {"wide": 200, "tall": 40}, "theirs": {"wide": 120, "tall": 80}}


def test_pictures_of_one_image_differ_in_nothing_but_what_is_seen(tmp_path: Path) -> None:
    methods = results(tmp_path, REDS)
    # The same colors as a square, as JPEG, with metadata; and with transparency in 16-bit gray.
    exif = Image.Exif()
    exif[0x131] = "ours 1.0"
    for name, size in (("wide", (64, 64)), ("tall", (20, 30))):
        (tmp_path / "ours" / f"{name}.png").unlink()
        color = (REDS["ours"][name], 90, 90)
        Image.new("RGB", size, color).save(tmp_path / "ours" / f"{name}.jpg", exif=exif)
    study = create_study(
        tmp_path / "study", [bench(tmp_path, "real", IMAGES)], methods, "ours", max_side=48
    )
    for shown, size in zip(study.shown, ((48, 32), (32, 48)), strict=True):
        for id, red in (
            (shown.input, 128),
            *((shown.results[name], REDS[name][shown.image]) for name in REDS),
        ):
            picture = Image.open(picture_path(tmp_path / "study", id))
            assert (picture.format, picture.size) == ("JPEG", size)
            assert not picture.getexif()
            assert {*picture.info} == {"jfif", "jfif_version", "jfif_unit", "jfif_density"} | {
                "icc_profile"
            }
            pixel = picture.convert("RGB").getpixel((9, 9))
            assert isinstance(pixel, tuple)
            assert abs(pixel[0] - red) <= 3
    assert read_study(tmp_path / "study") == study


@pytest.mark.parametrize(
    ("size", "max_side", "expected"),
    [
        ((30, 20), 0, (30, 20)),
        ((30, 20), 30, (30, 20)),
        ((31, 7), 10, (10, 2)),
        ((1, 9000), 1600, (1, 1600)),
    ],
)
def test_pictures_are_only_ever_shrunk(
    size: tuple[int, int], max_side: int, expected: tuple[int, int]
) -> None:
    assert shrunk(size, max_side) == expected


def test_only_what_can_be_compared_is_shown(tmp_path: Path) -> None:
    images = dict.fromkeys(("all", "ours only", "others", "none"), (8, 8))
    having = {"a": ["all", "ours only"], "b": ["all", "others"], "c": ["all", "others"]}
    methods = results(
        tmp_path, {name: dict.fromkeys(found, 50) for name, found in having.items()}, (8, 8)
    )
    sets = [bench(tmp_path, "real", images)]
    robin = create_study(tmp_path / "robin", sets, methods, None)
    assert [shown.image for shown in robin.shown] == ["all", "others"]
    assert len(robin.schedule("ab")) == 4
    against = create_study(tmp_path / "against", sets, methods, "a")
    assert [shown.image for shown in against.shown] == ["all"]
    assert len(against.schedule("ab")) == 2
    with pytest.raises(ColorFluxError, match="no image has results of two"):
        create_study(
            tmp_path / "none",
            sets,
            [*results(tmp_path / "x", {"x": {"none": 1}}, (8, 8)), methods[0]],
            None,
        )


def test_a_study_that_was_interrupted_can_be_made_again(tmp_path: Path) -> None:
    methods, sets = results(tmp_path, REDS), [bench(tmp_path, "real", IMAGES)]
    (tmp_path / "ours" / "tall.png").rename(tmp_path / "tall.png")
    (tmp_path / "ours" / "tall.png").write_bytes(b"no picture")
    folder = tmp_path / "study"
    with pytest.raises(ColorFluxError, match="is not a photo"):
        create_study(folder, sets, methods, None)
    with pytest.raises(ColorFluxError, match="study new"):
        read_study(folder)
    shutil.move(tmp_path / "tall.png", tmp_path / "ours" / "tall.png")
    study = create_study(folder, sets, methods, None)
    assert {path.stem for path in (folder / "images").iterdir()} == picture_ids(study)
    with pytest.raises(ColorFluxError, match="already has a study"):
        create_study(folder, sets, methods, None)


def test_a_damaged_study_is_told(tmp_path: Path) -> None:
    methods, sets = results(tmp_path, REDS), [bench(tmp_path, "real", IMAGES)]
    study = create_study(tmp_path, sets, methods, None)
    whole = (tmp_path / "study.json").read_text()
    for content in (
        whole[:-9],
        "[]",
        "{}",
        whole.replace('"seed"', '"sead"'),
        whole.replace('"version": 1', '"version": 2'),
    ):
        (tmp_path / "study.json").write_text(content)
        with pytest.raises(ColorFluxError, match=r"study\.json .* create the study again"):
            read_study(tmp_path)
    (tmp_path / "study.json").write_text(whole)
    picture_path(tmp_path, study.shown[0].input).unlink()
    with pytest.raises(ColorFluxError, match="is missing"):
        read_study(tmp_path)


@pytest.fixture
def run(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """The command, in a folder with a benchmark of two sets and two methods' results."""
    monkeypatch.chdir(tmp_path)
    rows = [
        Row(set, item.name, f"{set}/{item.name}.png", "", "", "", "", "")
        for set in ("real", "faded")
        for item in bench(tmp_path / "bench", set, IMAGES).items
    ]
    write_rows(tmp_path / "bench" / MANIFEST, Row._fields, rows)
    for method in results(tmp_path, REDS):
        shutil.copytree(method.folder, method.folder / "real")
        shutil.copytree(method.folder / "real", method.folder / "faded")

    return lambda words: result_of(main, ["study", *words.split()], capsys)


METHODS = "--method ours=ours --method theirs=theirs"


def made(path: str = "study") -> Study:
    return read_study(Path(path))


def test_the_command_makes_what_it_is_asked_for(run: Run) -> None:
    status, lines = run(f"new bench -o study {METHODS}")
    assert status == 0
    assert "4 images, 4 pairs per participant" in "\n".join(lines)
    assert (made().reference, made().ties, made().pairs, made().seed) == ("ours", False, None, 0)
    options = "--round-robin --pairs 1 --ties --seed 7 --set faded --max-side 8"
    assert run(f"new bench -o other {METHODS} {options}")[0] == 0
    other = made("other")
    assert (other.reference, other.ties, other.pairs, other.seed) == (None, True, 1, 7)
    assert {shown.set for shown in other.shown} == {"faded"}
    assert len(other.schedule("ab")) == 1
    assert run(f"new bench -o third {METHODS} --reference theirs")[0] == 0
    assert made("third").reference == "theirs"


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ("new bench -o x --method ours=ours", "--method"),
        ("new bench -o x --method ours=ours --method ours=theirs", "different names"),
        ("new bench -o x --method ours --method theirs=theirs", "NAME=PLACE"),
        (f"new bench -o x {METHODS} --reference them", "--reference"),
        (f"new bench -o x {METHODS} --reference ours --round-robin", "--round-robin"),
        (f"new bench -o x {METHODS} --set synthesized", "--set"),
        (f"new bench -o x {METHODS} --pairs 0", "--pairs"),
        (f"new bench -o x {METHODS} --max-side -1", "--max-side"),
        (f"new ours -o x {METHODS}", "sets.csv"),
        ("new bench -o x --method ours=ours --method gone=gone", "gone is not a folder"),
        (f"new bench -o ours/wide.png/x {METHODS}", "-o"),
        ("serve nothing", "study new"),
        ("results nothing", "study new"),
        ("show", "show"),
        ("", "COMMAND"),
    ],
)
def test_mistakes_are_one_line(run: Run, words: str, named: str) -> None:
    status, lines = run(words)
    assert status == 2
    assert len(lines) == 1
    assert named in lines[0]
    assert not Path("x/study.json").exists()


def test_a_port_that_is_taken_is_told(run: Run) -> None:
    run(f"new bench -o study {METHODS}")
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        refused("evaluation study", run(f"serve study --port {port}"), str(port), "--port")
    refused("evaluation study", run("serve study --port 99999"), "--port")
    refused("evaluation study", run("serve study --host nowhere.invalid"), "--host")


def test_results_before_any_answer(run: Run) -> None:
    run(f"new bench -o study {METHODS}")
    refused("evaluation study", run("results study"), "no answers yet")
    assert json.loads(Path("study/study.json").read_text())["methods"] == ["ours", "theirs"]


def test_help_comes_without_torch(run: Run) -> None:
    for words in ("--help", "new --help", "serve --help", "results --help"):
        assert run(words) == (0, [])


def test_a_method_is_a_folder(tmp_path: Path) -> None:
    with pytest.raises(ColorFluxError, match="is not a folder"):
        create_study(
            tmp_path / "study",
            [bench(tmp_path, "real", IMAGES)],
            [*results(tmp_path, REDS), Method("gone", tmp_path / "gone")],
            None,
        )
