"""``python -m colorflux_core.evaluation``: photos to sets to a report, as a user has it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from colorflux_core.bundles.bundle import load_bundle, save_bundle
from colorflux_core.evaluation.__main__ import main
from colorflux_core.evaluation.scores import Score, read_scores, write_scores
from colorflux_core.model.colorization import colorize
from colorflux_core.model.settings import Settings
from colorflux_core.photos.canvas import Canvas
from colorflux_core.photos.images import eight_bit
from colorflux_core.photos.photo import load_photo
from tests.cli.command_runs import Result, files, refused, result_of
from tests.evaluation.judges.judge_server import serving, six
from tests.nano_models import tiny_pipeline
from tests.training.tiny_training import synthetic_photo

Run = Callable[[str], Result]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    monkeypatch.chdir(tmp_path)
    return lambda command: result_of(main, command.split(), capsys)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A benchmark of two photos and an old one, a bundle, and another program's results."""
    folder = tmp_path_factory.mktemp("made")
    for seed in range(2):
        (folder / "photos").mkdir(exist_ok=True)
        synthetic_photo(seed).save(folder / "photos" / f"{seed}.png")
    (folder / "old").mkdir()
    synthetic_photo(2).convert("L").save(folder / "old" / "grandma.png")
    words = ["sets", folder / "photos", "--old", folder / "old", "-o", folder / "bench"]
    assert main([str(word) for word in words]) == 0
    save_bundle(
        folder / "bundle",
        tiny_pipeline(),
        Settings(canvas=Canvas("square", 32), steps=1, text_tokens=2),
    )
    for name, image in {"synthesized": "0", "augmented": "1"}.items():
        results = folder / "others" / name
        results.mkdir(parents=True)
        shutil.copy(folder / "bench" / "truth" / f"{image}.png", results)
    return folder


@pytest.fixture
def here(made: Path, tmp_path: Path) -> None:
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)


METHODS = "--method Ours=bundle:bundle --method Other=others --method Gray=bench --workers 0"


def scores(metric: str) -> dict[tuple[str, str, str], float]:
    return {
        score[:3]: score.value
        for score in read_scores(Path("report/scores.csv"))
        if score.metric == metric
    }


@pytest.mark.usefixtures("here")
def test_a_bundle_and_folders_of_results(run: Run) -> None:
    status, lines = run(f"run bench -o report {METHODS}")
    assert status == 1
    assert lines[-3:] == [
        "Other: 1 of 2 results for synthesized",
        "Other: 1 of 2 results for augmented",
        "report/report.html",
    ]

    error = scores("ciede2000")
    assert error["synthesized", "Other", "0"] == pytest.approx(0, abs=1e-3)
    assert np.isnan(error["synthesized", "Other", "1"])
    assert error["synthesized", "Gray", "1"] > 1
    assert {key[:2] for key in error if key[1] == "Ours"} == {
        ("synthesized", "Ours"),
        ("augmented", "Ours"),
    }
    assert scores("colorfulness")["real", "Gray", "grandma"] == pytest.approx(0, abs=1e-3)

    bundle = load_bundle("bundle")
    photo = load_photo("bench/real/grandma.png")
    expected = np.array(eight_bit(colorize(bundle.pipeline, photo.pixels, bundle.settings)))
    written = np.array(Image.open("report/results/Ours/real/grandma.png"))
    np.testing.assert_array_equal(written, expected)


@pytest.mark.usefixtures("here")
def test_a_second_run_makes_nothing_again(run: Run) -> None:
    with serving(lambda asked: six(overall=80)) as server:
        command = (
            f"run bench -o report --set real --workers 0 --method Ours=bundle:bundle"
            f" --judge qwen-score=any@{server.url}"
        )
        assert run(command)[0] == 0
        assert scores("OA") == {("real", "Ours", "grandma"): 80}
        before = files("report")
        asked, colorized = len(server.asked), Path("report/results/Ours/real/grandma.png").stat()
        assert run(command)[0] == 0
        assert len(server.asked) == asked == 1
        assert Path("report/results/Ours/real/grandma.png").stat() == colorized
        assert files("report") == before
        assert run(f"{command} --method Gray=bench")[0] == 0
        assert len(server.asked) == 2
    report = Path("report/report.html").read_text(encoding="utf-8")
    assert "so so" in report
    assert "template" in report


@pytest.mark.usefixtures("here")
def test_a_judge_that_cannot_be_read_is_missing_and_said(run: Run) -> None:
    with serving(lambda asked: "I like it.") as server:
        status, lines = run(
            f"run bench -o report --set real --workers 0 --method Gray=bench"
            f" --judge qwen-score=any@{server.url}"
        )
        assert len(server.asked) == 3
    assert status == 1
    assert any("grandma" in line and "could be parsed" in line for line in lines)
    assert np.isnan(scores("OA")["real", "Gray", "grandma"])


@pytest.mark.usefixtures("here")
def test_scores_of_another_program(run: Run) -> None:
    write_scores(Path("fid.csv"), [Score("real", "Gray", "", "FID", 12.5)])
    assert (
        run(
            "run bench -o report --set real --workers 0 --method Gray=bench --scores fid.csv"
            " --lower FID"
        )[0]
        == 0
    )
    assert scores("FID") == {("real", "Gray", ""): 12.5}
    report = Path("report/report.md").read_text(encoding="utf-8")
    assert "FID ↓" in report
    assert "12.5" in report


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize(
    "score",
    [
        Score("other", "Gray", "0", "FID", 1),
        Score("real", "Other", "grandma", "FID", 1),
        Score("real", "Gray", "0", "FID", 1),
        Score("real", "Gray", "grandma", "FID", float("inf")),
    ],
)
def test_scores_of_what_is_not_compared(run: Run, score: Score) -> None:
    write_scores(Path("fid.csv"), [score])
    command = "run bench -o report --set real --method Gray=bench --scores fid.csv"
    refused("evaluation run", run(command))


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize(
    ("words", "named"),
    [
        ("", ["--method"]),
        ("--method Gray", ["NAME=PLACE"]),
        ("--method Gray=bench --method Gray=others", ["same name"]),
        ("--method Gray=nowhere", ["nowhere", "is not a folder"]),
        ("--method Gray=photos", ["match several sets"]),
        ("--method A=bundle:nowhere", ["nowhere"]),
        ("--method Gray=bench --set other", ["other", "synthesized, augmented, real"]),
        ("--method Gray=bench --reference Ours", ["Ours", "--reference"]),
        ("--method Gray=bench --scores nowhere.csv", ["nowhere.csv"]),
        ("--method Gray=bench --judge me=http://127.0.0.1/v1", ["me=", "qwen-score"]),
        ("--method Gray=bench --judge deqa=http://127.0.0.1/v1", ["MODEL@"]),
        ("--method Gray=bench --judge deqa=nowhere", ["nowhere"]),
        ("--method Gray=bench --judge qwen-score=bench --template nowhere", ["nowhere"]),
        ("--method Gray=bench --workers -1", ["--workers"]),
        ("--method Gray=bench --seed -1", ["--seed"]),
        ("--method Ours=bundle:bundle --method Other=bundle:nowhere", ["nowhere"]),
        ("--method A/B=bundle:bundle --method A?B=bundle:bundle", ["separate folders"]),
        ("--method Gray=bench --features photos", ["--features photos"]),
        ("--method Gray=bench --lpips photos", ["--lpips photos"]),
        ("--method Gray=bench --lower FID", ["--lower FID"]),
        ("--method Gray=bench --judge qwen-score=a@http://127.0.0.1:99999/v1", ["99999"]),
        ("--method Gray=bench --template old/grandma.png", ["qwen-score"]),
        ("--method truth=bench", ["truth"]),
        (
            "--method Gray=bench --judge deqa=a@http://127.0.0.1/v1"
            " --judge deqa=b@http://127.0.0.1/v1",
            ["twice"],
        ),
    ],
)
def test_what_cannot_be_used_is_said_before_any_work(
    run: Run, words: str, named: list[str]
) -> None:
    refused("evaluation run", run(f"run bench -o report {words}"), *named)
    assert not [path for path in Path().glob("report/**/*") if path.suffix in (".png", ".html")]


@pytest.mark.usefixtures("here")
def test_results_of_a_bundle_that_has_changed_are_not_taken(run: Run) -> None:
    command = "run bench -o report --set real --workers 0 --method Ours=bundle:bundle"
    assert run(command)[0] == 0
    os.utime("bundle/colorflux.json", ns=(0, 0))
    refused("evaluation run", run(command), "report/results/Ours", "another bundle")


@pytest.mark.usefixtures("here")
def test_results_for_a_set_that_was_built_anew_are_not_taken(run: Run) -> None:
    command = "run bench -o report --workers 0 --method Ours=bundle:bundle"
    assert run(f"{command} --set real")[0] == 0
    assert run("sets photos --old old -o bench --seed 1")[0] == 0
    assert run(command)[0] == 0
    assert run("sets photos --old old -o bench --seed 2")[0] == 0
    refused("evaluation run", run(command), "report/results/Ours", "another augmented")


@pytest.mark.parametrize(
    "words", ["", "--help", "sets --help", "run --help", "study --help", "study new --help"]
)
def test_help_teaches(run: Run, words: str) -> None:
    status, lines = run(words)
    assert status == (0 if words else 2)
    assert not lines


def test_an_unknown_command(run: Run) -> None:
    refused("evaluation", run("judge"), "sets, run or study")
