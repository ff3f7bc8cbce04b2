"""Sets and methods through the metrics: in processes, with a cache, whatever files are missing."""

from __future__ import annotations

import json
import logging
import math
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from colorflux_core.errors import ColorFluxError
from colorflux_core.evaluation.benchmark.methods import Method
from colorflux_core.evaluation.benchmark.sets import BenchmarkSet, Item
from colorflux_core.evaluation.metrics import measure as module
from colorflux_core.evaluation.metrics.measure import measure
from colorflux_core.evaluation.metrics.metrics import METRICS
from colorflux_core.evaluation.metrics.planes import planes
from colorflux_core.evaluation.scores import Score
from colorflux_core.photos.color import grayscale
from colorflux_core.photos.photo import load_photo

KEYS = {metric.column.key: metric.against for metric in METRICS}
OF_PICTURES = {key for key, against in KEYS.items() if against != "before"}


def picture(seed: int, height: int = 20, width: int = 24) -> Tensor:
    random = torch.Generator().manual_seed(seed)
    return torch.rand(3, height, width, generator=random)


def write(path: Path, rgb: Tensor) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray((rgb * 255).byte().permute(1, 2, 0).numpy()).save(path)
    return path


def a_set(
    folder: Path, names: tuple[str, ...] = ("a", "b"), *, with_truth: bool = True
) -> BenchmarkSet:
    items = []
    for seed, name in enumerate(names):
        truth = write(folder / "truth" / f"{name}.png", picture(seed))
        given = write(folder / "input" / f"{name}.png", grayscale(picture(seed)))
        items.append(Item(name, given, truth if with_truth else None))
    return BenchmarkSet("synthesized" if with_truth else "real", tuple(items))


def a_method(folder: Path, names: tuple[str, ...] = ("a", "b"), seed: int = 100) -> Method:
    for place, name in enumerate(names):
        write(folder / "ours" / f"{name}.png", picture(seed + place))
    return Method("ours", folder / "ours")


def by_key(scores: list[Score], method: str, image: str) -> dict[str, float]:
    return {s.metric: s.value for s in scores if (s.method, s.image) == (method, image)}


def test_values_are_the_metrics_of_the_files(tmp_path: Path) -> None:
    benchmark, method = a_set(tmp_path), a_method(tmp_path)
    scores = measure([benchmark], [method], tmp_path / "cache")
    assert {(s.set, s.method, s.image) for s in scores} == {
        ("synthesized", name, image) for name in ("ours", "truth") for image in ("a", "b")
    }
    files = {
        "nothing": tmp_path / "ours" / "b.png",
        "input": tmp_path / "input" / "b.png",
        "truth": tmp_path / "truth" / "b.png",
    }
    read = {name: planes(load_photo(path).rgb) for name, path in files.items()}
    expected = {
        metric.column.key: metric.value(read["nothing"], read[metric.against]).item()
        for metric in METRICS
        if metric.against != "before"
    }
    found = by_key(scores, "ours", "b")
    assert found.pop("resized") == 0
    assert found == pytest.approx(expected, abs=1e-5)


def test_the_photos_themselves_are_measured_but_not_against_themselves(tmp_path: Path) -> None:
    scores = measure([a_set(tmp_path)], [a_method(tmp_path)], tmp_path / "cache")
    found = by_key(scores, "truth", "a")
    assert {*found} == {key for key in OF_PICTURES if KEYS[key] != "truth"} | {"resized"}
    assert found["ssim_input"] > 0.99


def test_without_truth_its_metrics_are_left_out(tmp_path: Path) -> None:
    scores = measure([a_set(tmp_path, with_truth=False)], [a_method(tmp_path)], tmp_path / "cache")
    assert {s.method for s in scores} == {"ours"}
    assert {s.metric for s in scores} == {k for k in OF_PICTURES if KEYS[k] != "truth"} | {
        "resized"
    }


def test_another_process_makes_no_difference(tmp_path: Path) -> None:
    names = ("a", "b", "c", "d", "e")
    benchmark, method = a_set(tmp_path, names), a_method(tmp_path, names)
    alone = measure([benchmark], [method], tmp_path / "one")
    assert measure([benchmark], [method], tmp_path / "two", workers=1) == alone


def test_a_missing_result_is_nan_and_a_damaged_one_is_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    benchmark = a_set(tmp_path, ("a", "b", "c"))
    method = a_method(tmp_path, ("a", "b"))
    damaged = tmp_path / "ours" / "b.png"
    damaged.write_bytes(damaged.read_bytes()[:700])
    with caplog.at_level(logging.WARNING):
        scores = measure([benchmark], [method], tmp_path / "cache")
    for image in ("b", "c"):
        found = by_key(scores, "ours", image)
        assert {*found} == OF_PICTURES | {"resized"}
        assert all(math.isnan(value) for value in found.values())
    assert all(not math.isnan(value) for value in by_key(scores, "ours", "a").values())
    assert [str(damaged) in record.getMessage() for record in caplog.records] == [True]


def test_a_damaged_truth_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    benchmark, method = a_set(tmp_path), a_method(tmp_path)
    (tmp_path / "truth" / "a.png").write_bytes(b"")
    with caplog.at_level(logging.WARNING):
        scores = measure([benchmark], [method], tmp_path / "cache")
    assert all(math.isnan(value) for value in by_key(scores, "ours", "a").values())
    assert "truth/a.png" in caplog.text.replace("\\", "/")
    assert all(not math.isnan(value) for value in by_key(scores, "ours", "b").values())


def test_a_result_of_another_size_is_resized_and_counted(tmp_path: Path) -> None:
    benchmark = a_set(tmp_path, ("a",))
    smooth = torch.linspace(0, 1, 24).expand(3, 20, 24)
    for name in ("truth", "input"):
        write(tmp_path / name / "a.png", smooth)
    large = torch.nn.functional.interpolate(smooth[None], scale_factor=2, mode="bilinear")[0]
    write(tmp_path / "ours" / "a.png", large.clamp(0, 1))
    scores = measure([benchmark], [Method("ours", tmp_path / "ours")], tmp_path / "cache")
    found = by_key(scores, "ours", "a")
    assert found["resized"] == 1
    assert found["luma_distance"] < 2 and found["ssim_truth"] > 0.98
    assert by_key(scores, "truth", "a")["resized"] == 0


def test_pictures_are_compared_at_the_size_of_the_truth(tmp_path: Path) -> None:
    benchmark = a_set(tmp_path, ("a",))
    write(tmp_path / "input" / "a.png", torch.full((3, 9, 9), 0.5))
    write(tmp_path / "ours" / "a.png", picture(0))
    scores = measure([benchmark], [Method("ours", tmp_path / "ours")], tmp_path / "cache")
    found = by_key(scores, "ours", "a")
    assert found["resized"] == 0 and found["ciede2000"] == 0


def test_gray_files_and_16_bits_are_measured(tmp_path: Path) -> None:
    benchmark = a_set(tmp_path, ("a",))
    gray = (grayscale(picture(0))[0] * 65535).to(torch.int32).numpy().astype("uint16")
    Image.fromarray(gray).save(tmp_path / "deep.png")
    (tmp_path / "deep.png").rename(tmp_path / "input" / "a.png")
    (tmp_path / "ours").mkdir()
    Image.open(tmp_path / "truth" / "a.png").convert("L").save(tmp_path / "ours" / "a.png")
    scores = measure([benchmark], [Method("ours", tmp_path / "ours")], tmp_path / "cache")
    found = by_key(scores, "ours", "a")
    assert found["colorfulness"] == pytest.approx(0, abs=1e-3)
    assert found["ssim_input"] > 0.99 and found["bleeding"] == pytest.approx(0, abs=1e-3)


# --- the cache


def test_what_is_known_is_not_measured_again(tmp_path: Path) -> None:
    benchmark, method, cache = a_set(tmp_path), a_method(tmp_path), tmp_path / "new" / "cache"
    first = measure([benchmark], [method], cache)
    lines = cache.read_text(encoding="utf-8").splitlines()
    assert len(lines) == 4
    # A value that only the cache can have.
    entry = json.loads(lines[0])
    entry["value"]["colorfulness"] = 12345.0
    cache.write_text("\n".join([json.dumps(entry), *lines[1:]]) + "\n", encoding="utf-8")
    again = measure([benchmark], [method], cache)
    assert len(cache.read_text(encoding="utf-8").splitlines()) == 4
    assert [s.value for s in again if s not in first] == [12345.0]


def test_only_what_changed_is_measured_again(tmp_path: Path) -> None:
    benchmark, method, cache = a_set(tmp_path), a_method(tmp_path), tmp_path / "cache"
    first = measure([benchmark], [method], cache)
    write(tmp_path / "ours" / "a.png", picture(555))
    second = measure([benchmark], [method], cache)
    assert len(cache.read_text(encoding="utf-8").splitlines()) == 5
    assert {(s.method, s.image) for s in {*second} - {*first}} == {("ours", "a")}
    write(tmp_path / "truth" / "b.png", picture(556))
    measure([benchmark], [method], cache)
    assert len(cache.read_text(encoding="utf-8").splitlines()) == 7


def test_another_version_of_the_metrics_measures_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    benchmark, method, cache = a_set(tmp_path), a_method(tmp_path), tmp_path / "cache"
    measure([benchmark], [method], cache)
    monkeypatch.setattr(module, "VERSION", -1)
    measure([benchmark], [method], cache)
    assert len(cache.read_text(encoding="utf-8").splitlines()) == 8


@pytest.mark.parametrize("kept", [0.3, 0.5, 0.999])
def test_an_interrupted_run_goes_on(tmp_path: Path, kept: float) -> None:
    """Its file ends anywhere, in the middle of a line as well."""
    benchmark, method, cache = a_set(tmp_path), a_method(tmp_path), tmp_path / "cache"
    whole = measure([benchmark], [method], cache)
    written = cache.read_bytes()
    cache.write_bytes(written[: int(kept * len(written))])
    assert measure([benchmark], [method], cache) == whole
    measured = cache.read_bytes().splitlines()
    assert {*written.splitlines()} <= {*measured}
    assert measure([benchmark], [method], cache) == whole
    assert cache.read_bytes().splitlines() == measured


def test_a_cache_that_is_something_else_is_left_alone(tmp_path: Path) -> None:
    benchmark, method = a_set(tmp_path), a_method(tmp_path)
    other = tmp_path / "scores.csv"
    other.write_text("set,method,image,metric,value\n", encoding="utf-8")
    with pytest.raises(ColorFluxError, match=r"scores\.csv"):
        measure([benchmark], [method], other)
    assert other.read_text(encoding="utf-8") == "set,method,image,metric,value\n"
    with pytest.raises(ColorFluxError, match="ours"):
        measure([benchmark], [method], tmp_path / "ours")


# --- frames


def frames(folder: Path, colors: list[tuple[float, float, float]]) -> tuple[BenchmarkSet, Method]:
    """A gray clip that stays, in a color for each frame; the color photos stay as well."""
    items = []
    for number, color in enumerate(colors, start=9):
        name = f"clip{number:03}"
        rgb = torch.tensor(color)[:, None, None].expand(3, 8, 8)
        write(folder / "ours" / f"{name}.png", rgb)
        given = write(folder / "input" / f"{name}.png", torch.full((3, 8, 8), 0.5))
        truth = write(folder / "truth" / f"{name}.png", torch.full((3, 8, 8), 0.5))
        items.append(Item(name, given, truth))
    return BenchmarkSet("clip", tuple(items)), Method("ours", folder / "ours")


def test_flicker_is_from_frame_to_frame(tmp_path: Path) -> None:
    benchmark, method = frames(tmp_path, [(0.6, 0.4, 0.4), (0.6, 0.4, 0.4), (0.4, 0.4, 0.6)])
    scores = measure([benchmark], [method], tmp_path / "cache", frames=True)
    flicker = {(s.method, s.image): s.value for s in scores if s.metric == "flicker"}
    assert {*flicker} == {
        (name, image) for name in ("ours", "truth") for image in ("clip010", "clip011")
    }
    before, after = (
        planes(load_photo(tmp_path / "ours" / f"{name}.png").rgb).chroma
        for name in ("clip010", "clip011")
    )
    expected = 255 * (after - before)[:, 0, 0].norm().item()
    assert flicker["ours", "clip010"] == pytest.approx(0, abs=1e-4)
    assert flicker["ours", "clip011"] == pytest.approx(expected, abs=1e-3)
    assert flicker["truth", "clip011"] == 0


def test_the_frame_before_may_have_no_truth(tmp_path: Path) -> None:
    benchmark, method = frames(tmp_path, [(0.6, 0.4, 0.4), (0.4, 0.4, 0.6)])
    first, second = benchmark.items
    mixed = BenchmarkSet("clip", (first._replace(truth=None), second))
    scores = measure([mixed], [method], tmp_path / "cache", frames=True)
    assert by_key(scores, "ours", second.name)["flicker"] > 1
    assert math.isnan(by_key(scores, "truth", second.name)["flicker"])


def test_photos_with_numbers_do_not_flicker_unasked(tmp_path: Path) -> None:
    benchmark, method = frames(tmp_path, [(0.6, 0.4, 0.4), (0.4, 0.4, 0.6)])
    scores = measure([benchmark], [method], tmp_path / "cache")
    assert "flicker" not in {s.metric for s in scores}


def test_a_missing_frame_leaves_its_successor_without_flicker(tmp_path: Path) -> None:
    benchmark, method = frames(tmp_path, [(0.6, 0.4, 0.4)] * 4)
    (tmp_path / "ours" / "clip009.png").unlink()
    (tmp_path / "ours" / "clip011.png").write_bytes(b"damaged")
    scores = measure([benchmark], [method], tmp_path / "cache", frames=True)
    flicker = {s.image: s.value for s in scores if (s.method, s.metric) == ("ours", "flicker")}
    assert {*flicker} == {"clip010", "clip011", "clip012"}
    assert all(math.isnan(value) for value in flicker.values())
    assert not math.isnan(by_key(scores, "ours", "clip012")["colorfulness"])
