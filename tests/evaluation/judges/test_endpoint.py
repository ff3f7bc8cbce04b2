"""Judges behind a real server on loopback, in all its moods."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from colorflux_core.errors import ColorFluxError
from colorflux_core.evaluation.judges.endpoint import Endpoint, read_api_key
from colorflux_core.evaluation.judges.qwen_score import ASPECTS, QWEN_SCORE
from colorflux_core.evaluation.judges.runner import Verdicts, judge_methods
from colorflux_core.evaluation.judges.template import Template
from tests.evaluation.judges.judge_server import (
    Asked,
    Behavior,
    Late,
    Raw,
    Serving,
    Silent,
    by_number,
    colorized,
    failing,
    made,
    serving,
    six,
)

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


def endpoint(url: str, retries: int = 0, timeout: float = 10) -> Endpoint:
    return Endpoint(url, "qwen", timeout=timeout, retries=retries)


class Bench:
    """A set of images, one method's results and a cache, before servers of any behavior."""

    def __init__(self, folder: Path, images: int) -> None:
        self.set = made(folder / "bench", images)
        self.method = colorized(folder, self.set)
        self.cache = folder / "cache" / "replies.jsonl"

    def judged(
        self, behave: Behavior, retries: int = 0, timeout: float = 10, **options: int
    ) -> tuple[Verdicts, Serving]:
        with serving(behave) as server:
            verdicts = judge_methods(
                QWEN_SCORE,
                endpoint(server.url, retries, timeout),
                [self.set],
                [self.method],
                self.cache,
                quiet=True,
                **options,
            )
        return verdicts, server


def seen(verdicts: Verdicts) -> list[int]:
    """The images that all aspects have right scores for, as :func:`by_number` gave them."""
    found = {(score.image, score.metric): score.value for score in verdicts.scores}
    images = list(dict.fromkeys(score.image for score in verdicts.scores))
    assert len(found) == len(ASPECTS) * len(images) == len(verdicts.scores)
    numbers = []
    for image in images:
        values = [found[image, metric] for metric in ASPECTS.values()]
        if not any(math.isnan(value) for value in values):
            assert values == [int(image) + place for place in range(len(ASPECTS))]
            numbers.append(int(image))
        else:
            assert all(math.isnan(value) for value in values)
    return numbers


def test_scores_for_each_set_method_and_image(tmp_path: Path) -> None:
    real, synthesized = made(tmp_path, 4), made(tmp_path, 2, "synthesized")
    ddcolor, kontext = colorized(tmp_path, real), colorized(tmp_path, real, "Kontext")
    colorized(tmp_path, synthesized)
    (tmp_path / "Kontext/real/2.png").unlink()
    with serving(by_number) as server:
        verdicts = judge_methods(
            QWEN_SCORE,
            endpoint(server.url),
            [real, synthesized],
            [ddcolor, kontext],
            tmp_path / "replies.jsonl",
            concurrency=3,
            quiet=True,
        )
    rows = [(score.set, score.method, score.image) for score in verdicts.scores[::6]]
    assert rows == [
        *(("real", "DDColor", str(number)) for number in range(4)),
        *(("real", "Kontext", str(number)) for number in range(4)),
        *(("synthesized", "DDColor", str(number)) for number in range(2)),
    ]
    assert len(verdicts.scores) == 60
    for score in verdicts.scores:
        place = [*ASPECTS.values()].index(score.metric)
        missing = score[:3] == ("real", "Kontext", "2")
        assert math.isnan(score.value) if missing else score.value == int(score.image) + place
    assert len(server.asked) == 9
    assert verdicts.rationales["synthesized", "DDColor", "1"] == "so so"
    assert len(verdicts.rationales) == 9
    assert not verdicts.failures
    assert verdicts.provenance == {
        "judge": "qwen-score",
        "model": "qwen",
        "template": QWEN_SCORE.template.fingerprint,
        "temperature": "0",
        "max_pixels": "1003520",
        "max_tokens": "2048",
    }


def test_what_is_sent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("API_KEY", "ADMIN_KEY", "ORG_ID", "PROJECT_ID", "WEBHOOK_SECRET"):
        monkeypatch.setenv(f"OPENAI_{name}", "another-servers")
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:9/v1")
    monkeypatch.setenv("OPENAI_CUSTOM_HEADERS", "X-Secret: another-servers")
    bench = Bench(tmp_path, 1)
    _, server = bench.judged(by_number)
    [asked] = server.asked
    assert asked.path == "/v1/chat/completions"
    assert not [value for value in asked.headers.values() if "another-servers" in value]
    assert asked.headers["authorization"] == "Bearer none"
    assert (asked.body["model"], asked.body["temperature"]) == ("qwen", 0)
    [message] = asked.body["messages"]
    assert [part["type"] for part in message["content"]] == ["image_url", "image_url", "text"]
    files = (bench.set.items[0].input, bench.method.folder / "real/0.png")
    assert asked.images == [Image.open(file) for file in files]


def test_large_images_are_shrunk(tmp_path: Path) -> None:
    bench = Bench(tmp_path, 1)
    Image.new("RGB", (300, 100)).save(bench.method.folder / "real/0.png")
    with serving(lambda _: six()) as server:
        small = replace(endpoint(server.url), max_pixels=3000)
        judge_methods(QWEN_SCORE, small, [bench.set], [bench.method], bench.cache, quiet=True)
    assert [image.size for image in server.asked[0].images] == [(20, 10), (94, 31)]


def test_late_replies_are_waited_for_together(tmp_path: Path) -> None:
    late, server = Bench(tmp_path, 12).judged(
        lambda asked: Late(0.1, by_number(asked)), concurrency=4
    )
    assert seen(late) == [*range(12)]
    assert 1 < server.most_at_once <= 4


def test_a_reply_that_comes_too_late_is_asked_for_again(tmp_path: Path) -> None:
    met: list[int] = []

    def first_silent(asked: Asked) -> str | Silent:
        met.append(asked.number)
        return Silent() if met.count(asked.number) == 1 else by_number(asked)

    verdicts, server = Bench(tmp_path, 3).judged(first_silent, retries=1, timeout=1, concurrency=3)
    assert seen(verdicts) == [0, 1, 2]
    assert server.numbers == [0, 0, 1, 1, 2, 2]


def test_an_empty_reply_is_none_and_asked_for_in_the_next_run(tmp_path: Path) -> None:
    bench = Bench(tmp_path, 1)
    verdicts, _ = bench.judged(lambda asked: "")
    assert seen(verdicts) == []
    verdicts, server = bench.judged(by_number)
    assert seen(verdicts) == [0]
    assert len(server.asked) == 1


@pytest.mark.parametrize(
    "bad", ['{"color_richness": 5', "I would rather not.", six(overall=120), six(aesthetic=-1)]
)
def test_a_bad_reply_is_asked_again_with_a_reminder(tmp_path: Path, bad: str) -> None:
    verdicts, server = Bench(tmp_path, 2).judged(
        lambda asked: by_number(asked) if len(asked.body["messages"]) == 5 else bad
    )
    assert seen(verdicts) == [0, 1]
    assert server.numbers == [0, 0, 0, 1, 1, 1]
    first, *more = server.asked[2].body["messages"]
    assert [first] == server.asked[0].body["messages"]
    reminder = [{"type": "text", "text": QWEN_SCORE.reminder}]
    assert (
        more
        == [
            {"role": "assistant", "content": bad},
            {"role": "user", "content": reminder},
        ]
        * 2
    )


def test_prose_and_fences_around_a_reply(tmp_path: Path) -> None:
    verdicts, server = Bench(tmp_path, 2).judged(
        lambda asked: f"Gladly!\n```json\n{by_number(asked)}\n```\nShall I go on?"
    )
    assert seen(verdicts) == [0, 1]
    assert len(server.asked) == 2


def test_what_cannot_be_read_in_the_end_is_missing(tmp_path: Path) -> None:
    def odd_ones_fail(asked: Asked) -> str:
        return by_number(asked) if asked.number % 2 == 0 else six(overall="a lot")

    bench = Bench(tmp_path, 4)
    verdicts, server = bench.judged(odd_ones_fail)
    assert seen(verdicts) == [0, 2]
    assert server.numbers == [0, 1, 1, 1, 2, 3, 3, 3]
    assert [failure.partition("; the last one: ")[0] for failure in verdicts.failures] == [
        "real/1, DDColor: none of 3 replies could be parsed",
        "real/3, DDColor: none of 3 replies could be parsed",
    ]
    again, server = bench.judged(odd_ones_fail)
    assert (seen(again), server.asked) == ([0, 2], [])
    more, server = bench.judged(by_number, attempts=4)
    assert (seen(more), server.numbers) == ([0, 1, 2, 3], [1, 3])


def test_errors_pass(tmp_path: Path) -> None:
    met: list[int] = []

    def first_broken(asked: Asked) -> str | Raw:
        met.append(asked.number)
        return failing(500) if met.count(asked.number) == 1 else by_number(asked)

    verdicts, server = Bench(tmp_path, 3).judged(first_broken, retries=1, concurrency=3)
    assert seen(verdicts) == [0, 1, 2]
    assert len(server.asked) == 6


@pytest.mark.parametrize(
    "broken",
    [
        failing(500),
        failing(400),
        Raw(b"<html>Welcome!</html>", "text/html"),
        Raw(b'{"choices": [{"mess'),
        Raw(b'{"choices": []}'),
        Raw(b'{"choices": null}'),
        Raw(b"[]"),
        Raw(b"null"),
    ],
    ids=lambda raw: f"{raw.status}-{raw.body.decode()}",
)
def test_images_that_errors_stay_with_are_asked_about_in_the_next_run(
    tmp_path: Path, broken: Raw
) -> None:
    bench = Bench(tmp_path, 4)
    verdicts, server = bench.judged(
        lambda asked: broken if asked.number in (0, 2) else by_number(asked), patience=2
    )
    assert seen(verdicts) == [1, 3]
    for number, failure in zip((0, 2), verdicts.failures, strict=True):
        assert failure.startswith(f"real/{number}, DDColor: {server.url} does not respond")
    again, server = bench.judged(by_number)
    assert (seen(again), server.numbers) == ([0, 1, 2, 3], [0, 2])


def test_a_server_that_is_not_there(tmp_path: Path) -> None:
    with serving(by_number) as server:
        gone = server.url
    bench = Bench(tmp_path, 50)
    started = time.monotonic()
    with pytest.raises(ColorFluxError, match=r"does not respond .*3 consecutive requests failed"):
        judge_methods(
            QWEN_SCORE, endpoint(gone), [bench.set], [bench.method], bench.cache, concurrency=2
        )
    assert time.monotonic() - started < 5


def test_a_server_that_never_answers(tmp_path: Path) -> None:
    bench = Bench(tmp_path, 50)
    started = time.monotonic()
    with pytest.raises(
        ColorFluxError, match=r"does not respond \(Request timed out.*consecutive requests failed"
    ):
        bench.judged(lambda _: Silent(), timeout=0.3, concurrency=3, patience=3)
    assert time.monotonic() - started < 5


def test_a_server_that_goes_away_in_the_middle(tmp_path: Path) -> None:
    def until_ten(asked: Asked) -> str | Raw:
        return by_number(asked) if asked.number < 10 else failing(503)

    bench = Bench(tmp_path, 20)
    with pytest.raises(ColorFluxError, match=r"503.*3 consecutive requests failed"):
        bench.judged(until_ten)
    verdicts, server = bench.judged(by_number)
    assert seen(verdicts) == [*range(20)]
    assert server.numbers == [*range(10, 20)]


@pytest.mark.parametrize("status", [401, 403, 404])
def test_a_refusal_is_final(tmp_path: Path, status: int) -> None:
    bench = Bench(tmp_path, 20)
    asked: list[Asked] = []

    def refuse(request: Asked) -> Raw:
        asked.append(request)
        return failing(status)

    with pytest.raises(
        ColorFluxError, match=r"rejects the request .*broken.*--judge and --api-key-file"
    ):
        bench.judged(refuse, retries=2)
    assert len(asked) == 1


@pytest.mark.parametrize("url", ["localhost:8000", "", "http://", "http://[::1", "http://a:b/v1"])
def test_an_address_that_is_none(tmp_path: Path, url: str) -> None:
    bench = Bench(tmp_path, 1)
    with pytest.raises(ColorFluxError, match="--judge"):
        judge_methods(
            QWEN_SCORE, endpoint(url), [bench.set], [bench.method], bench.cache, patience=1
        )


def test_a_damaged_result_is_missing_and_nothing_else(tmp_path: Path) -> None:
    bench = Bench(tmp_path, 8)
    for number in range(6):
        (bench.method.folder / f"real/{number}.png").write_bytes(b"no image")
    verdicts, server = bench.judged(by_number)
    assert seen(verdicts) == [6, 7]
    assert len(server.asked) == 2
    assert all("is not a photo" in failure for failure in verdicts.failures)
    assert len(verdicts.failures) == 6


KILLED = """
import sys
from pathlib import Path
from colorflux_core.evaluation.judges.runner import judge_methods
from colorflux_core.evaluation.judges.endpoint import Endpoint
from colorflux_core.evaluation.judges.qwen_score import QWEN_SCORE
from colorflux_core.evaluation.benchmark.methods import Method
from colorflux_core.evaluation.benchmark.sets import BenchmarkSet, Item

folder, url, cache = map(str, sys.argv[1:])
items = [Item(str(n), Path(folder, f"bench/real/{n}.png"), None) for n in range(30)]
judge_methods(
    QWEN_SCORE,
    Endpoint(url, "qwen", timeout=10, retries=0),
    [BenchmarkSet("real", tuple(items))],
    [Method("DDColor", Path(folder, "DDColor"))],
    Path(cache),
    concurrency=3,
)
"""


def test_a_kill_loses_only_what_is_under_way(tmp_path: Path) -> None:
    bench = Bench(tmp_path, 30)
    with serving(lambda asked: Late(0.05, by_number(asked))) as server:
        process = subprocess.Popen(
            [sys.executable, "-c", KILLED, str(tmp_path), server.url, str(bench.cache)],
            cwd=ROOT,
            env={**os.environ, "NO_PROXY": "127.0.0.1"},
            stderr=subprocess.DEVNULL,
        )
        while len(server.asked) < 10 and process.poll() is None:
            time.sleep(0.01)
        process.kill()
        assert process.wait() == -signal.SIGKILL
    before = server.numbers
    assert 10 <= len(before) < 30
    with bench.cache.open("a") as cache:
        cache.write('{"key": "torn in the mid')
    verdicts, after = bench.judged(by_number)
    assert seen(verdicts) == [*range(30)]
    assert len(before) + len(after.asked) <= 30 + 3
    assert sorted({*before, *after.numbers}) == [*range(30)]
    _, nothing = bench.judged(by_number)
    assert nothing.asked == []


def test_only_what_is_new_is_asked(tmp_path: Path) -> None:
    bench = Bench(tmp_path, 3)
    bench.judged(by_number)
    Image.new("RGB", (20, 10), (1, 1, 1)).save(bench.method.folder / "real/1.png")
    verdicts, server = bench.judged(by_number)
    assert (seen(verdicts), server.numbers) == ([0, 1, 2], [1])
    # The same files by other names are the same question.
    twin = bench.method.folder.rename(tmp_path / "Twin")
    method = replace(bench.method, name="Twin", folder=twin)
    judge = QWEN_SCORE
    with serving(by_number) as server:
        own = endpoint(server.url)
        arguments = ([bench.set], [method], bench.cache)
        judge_methods(judge, own, *arguments, quiet=True)
        assert server.asked == []
        for changed in (replace(own, model="b"), replace(own, max_pixels=100)):
            judge_methods(judge, changed, *arguments, quiet=True)
            assert server.numbers == [0, 1, 2]
            server.asked.clear()
        other = replace(judge, template=Template(judge.template.text + "Thank you."))
        judge_methods(other, own, *arguments, quiet=True)
        assert server.numbers == [0, 1, 2]


def test_a_cache_that_is_none(tmp_path: Path) -> None:
    bench = Bench(tmp_path, 1)
    scores = tmp_path / "scores.csv"
    scores.write_text("set,method\n")
    bench.cache = scores
    with pytest.raises(ColorFluxError, match="is not a cache file"):
        bench.judged(by_number)
    assert scores.read_text() == "set,method\n"
    bench.cache = scores / "replies.jsonl"
    with pytest.raises(ColorFluxError, match="cannot write"):
        bench.judged(by_number)


def test_a_cache_that_fails_in_the_middle_stops_it_all(tmp_path: Path) -> None:
    bench = Bench(tmp_path, 5)

    def sabotage(asked: Asked) -> str:
        bench.cache.unlink()
        bench.cache.mkdir()
        return by_number(asked)

    with pytest.raises(ColorFluxError, match="cannot write"):
        bench.judged(sabotage)


def test_a_cache_that_was_torn_in_its_first_line(tmp_path: Path) -> None:
    bench = Bench(tmp_path, 1)
    bench.cache.parent.mkdir()
    bench.cache.write_text('{"k')
    bench.judged(by_number)
    _, server = bench.judged(by_number)
    assert server.asked == []


def test_a_key_is_read_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "key"
    path.write_text("sk-1 \n")
    bench = Bench(tmp_path, 1)
    with serving(by_number) as server:
        own = replace(endpoint(server.url), api_key=read_api_key(path))
        judge_methods(QWEN_SCORE, own, [bench.set], [bench.method], bench.cache, quiet=True)
    assert server.asked[0].headers["authorization"] == "Bearer sk-1"
    for content in (b"", b"\n", b"two\nlines", "schlüssel".encode()):
        path.write_bytes(content)
        with pytest.raises(ColorFluxError, match="--api-key-file"):
            read_api_key(path)
    with pytest.raises(ColorFluxError, match="--api-key-file"):
        read_api_key(tmp_path / "missing")
