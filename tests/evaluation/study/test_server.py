"""What the study's server answers, and whom."""

from __future__ import annotations

import http.client
import io
import json
import logging
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from PIL import Image

from colorflux_core.evaluation.study.create import create_study
from colorflux_core.evaluation.study.server import StudyServer
from colorflux_core.evaluation.study.study import picture_ids
from tests.evaluation.study.study_runs import bench, results

REDS = {name: dict.fromkeys(("p0", "p1", "p2"), red) for name, red in (("our", 200), ("yeti", 90))}


@contextmanager
def running(study: Path, host: str = "127.0.0.1") -> Iterator[StudyServer]:
    with StudyServer(study, host, 0) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture
def study(tmp_path: Path) -> Path:
    methods = results(tmp_path, REDS)
    sets = [bench(tmp_path, "real", dict.fromkeys(("p0", "p1", "p2"), (24, 16)))]
    create_study(tmp_path / "study", sets, methods, None)
    return tmp_path / "study"


@pytest.fixture
def server(study: Path) -> Iterator[StudyServer]:
    with running(study) as server:
        yield server


def ask(
    server: StudyServer,
    path: str,
    body: str | None = None,
    method: str | None = None,
    **headers: str,
) -> tuple[int, bytes]:
    port = server.server_address[1]
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    given = {name.replace("_", "-"): value for name, value in headers.items()}
    connection.request(method or ("GET" if body is None else "POST"), path, body, given)
    reply = connection.getresponse()
    content = reply.read()
    connection.close()
    return reply.status, content


def state(server: StudyServer, who: str = "ab") -> dict[str, Any]:
    status, content = ask(server, f"/state?who={who}")
    assert status == 200
    return dict(json.loads(content))


def answer(server: StudyServer, pair: object, choice: object, who: object = "ab") -> int:
    body = json.dumps({"who": who, "pair": pair, "choice": choice})
    status, content = ask(server, "/answer", body, X_Study=server.study.token)
    return int(json.loads(content)["answered"]) if status == 200 else -status


def test_a_session(server: StudyServer) -> None:
    assert state(server)["answered"] == 0
    assert [answer(server, pair, "left") for pair in (0, 1, 1, 0)] == [1, 2, 2, 2]
    assert answer(server, 1, "undo") == 1
    assert state(server, "A.B.")["answered"] == 0
    assert state(server, "AB")["answered"] == 1
    assert answer(server, 0, "right", "cd") == 1
    lines = [path.name for path in sorted(server.folder.glob("*.jsonl"))]
    assert lines == ["answers-ab.jsonl", "answers-cd.jsonl"]
    status, picture = ask(server, f"/images/{state(server)['pairs'][0][0]}.jpg")
    assert status == 200
    assert Image.open(io.BytesIO(picture)).size == (24, 16)


def test_the_pictures_are_those_of_the_schedule(server: StudyServer) -> None:
    for pair, ids in zip(server.study.schedule("ab"), state(server)["pairs"], strict=True):
        (shown,) = (shown for shown in server.study.shown if shown.image == pair.image)
        assert ids == [shown.input, shown.results[pair.left], shown.results[pair.right]]


@pytest.mark.parametrize(
    "body",
    [
        "",
        "no json",
        "[]",
        "[" * 4000,
        "{}",
        '{"who": "ab", "pair": 0}',
        '{"who": "ab", "pair": "0", "choice": "left"}',
        '{"who": "ab", "pair": true, "choice": "left"}',
        '{"who": "ab", "pair": 0.0, "choice": "left"}',
        '{"who": "ab", "pair": 0, "choice": "tie"}',
        '{"who": "ab", "pair": 0, "choice": ["left"]}',
        '{"who": "", "pair": 0, "choice": "left"}',
        '{"who": 7, "pair": 0, "choice": "left"}',
        '{"who": "\\ud800", "pair": 0, "choice": "left"}',
    ],
)
def test_what_is_no_answer_is_refused(server: StudyServer, body: str) -> None:
    assert ask(server, "/answer", body, X_Study=server.study.token)[0] == 400
    assert not [*server.folder.glob("*.jsonl")]


def test_out_of_range_changes_nothing(server: StudyServer) -> None:
    for pair in (-1, 1, 3, 10**9):
        assert answer(server, pair, "left") == 0
    assert answer(server, -1, "undo") == 0


def test_an_answer_needs_the_studys_own_page(server: StudyServer) -> None:
    body = json.dumps({"who": "ab", "pair": 0, "choice": "left"})
    assert ask(server, "/answer", body)[0] == 403
    assert ask(server, "/answer", body, X_Study="another")[0] == 403
    assert ask(server, "/answer", body, X_Study="\xe9")[0] == 403
    assert ask(server, "/answer", "x" * 5000, X_Study=server.study.token)[0] == 413
    assert ask(server, "/answer", body, "PUT", X_Study=server.study.token)[0] == 501
    assert ask(server, "/answer", body, "OPTIONS", X_Study=server.study.token)[0] == 501
    assert state(server)["answered"] == 0


@pytest.mark.parametrize("host", ["evil.example", "evil.example:8765", "", "localhost.evil", "[x"])
def test_a_name_that_was_rebound_is_refused(server: StudyServer, host: str) -> None:
    for path in ("/", "/state?who=ab"):
        assert ask(server, path, Host=host)[0] == 403
    body = json.dumps({"who": "ab", "pair": 0, "choice": "left"})
    assert ask(server, "/answer", body, X_Study=server.study.token, Host=host)[0] == 403


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:8765", "127.0.0.1", "[::1]:8765"])
def test_this_machines_own_names_are_known(server: StudyServer, host: str) -> None:
    assert ask(server, "/", Host=host)[0] == 200


@pytest.mark.parametrize(
    "path",
    [
        "/study.json",
        "/results.md",
        "/answers-ab.jsonl",
        "/images/",
        "/images/../study.json",
        "/images/..%2fstudy.json",
        "/images/%2e%2e/study.json",
        "/images//etc/passwd",
        "/images/0000.jpg",
        "//images",
        "/state/../study.json",
        "/answer",
    ],
)
def test_nothing_else_is_there(server: StudyServer, path: str) -> None:
    assert ask(server, path)[0] == 404


def test_names_that_cannot_be_used_are_told(server: StudyServer) -> None:
    for who in ("", "%20", "..%2f..", "a" * 41):
        status, content = ask(server, f"/state?who={who}")
        assert status == 400
        assert "name or initials" in json.loads(content)["error"]
    assert state(server, "..%2f..%2fab")["who"] == "ab"


def test_nothing_tells_the_methods(server: StudyServer) -> None:
    port = server.server_address[1]
    for path in ("/", "/state?who=ab", *(f"/images/{id}.jpg" for id in picture_ids(server.study))):
        with socket.create_connection(("127.0.0.1", port)) as raw:
            raw.sendall(
                f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode()
            )
            everything = raw.makefile("rb").read()
        assert b" 200 OK" in everything
        assert b"ython" not in everything.partition(b"\r\n\r\n")[0]
        for name in (b"yeti", b"real", b"p1", b"jsonl", str(server.folder).encode()):
            assert name not in everything, (path, name)


def test_beyond_loopback_the_address_has_the_token(study: Path) -> None:
    with running(study, "0.0.0.0") as server:
        token = server.study.token
        assert urlsplit(server.url).path == f"/{token}/"
        assert ask(server, f"/{token}/")[0] == ask(server, f"/{token}")[0] == 200
        assert ask(server, f"/{token}/state?who=ab")[0] == 200
        for path in ("/", "/state?who=ab", "/answer", f"/{token[:-1]}/", f"/{token}x/", "/%c3%a9/"):
            status, content = ask(server, path)
            assert status == 404
            assert token.encode() not in content
        body = json.dumps({"who": "ab", "pair": 0, "choice": "left"})
        assert ask(server, "/answer", body, X_Study=token)[0] == 404
        assert ask(server, f"/{token}/answer", body, X_Study=token) == (200, b'{"answered": 1}')


def test_on_loopback_the_address_is_plain(server: StudyServer) -> None:
    assert server.url == f"http://127.0.0.1:{server.server_address[1]}/"


def test_answers_at_once_from_many_windows_count_once(
    server: StudyServer, request: pytest.FixtureRequest
) -> None:
    request.addfinalizer(partial(sys.setswitchinterval, sys.getswitchinterval()))
    sys.setswitchinterval(1e-6)

    def one() -> None:
        for pair in range(3):
            answer(server, pair, "left")

    threads = [threading.Thread(target=one) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    lines = (server.folder / "answers-ab.jsonl").read_text().splitlines()
    assert [json.loads(line)["pair"] for line in lines] == [0, 1, 2]


def test_a_file_that_cannot_be_used_is_not_the_participants_fault(
    server: StudyServer, caplog: pytest.LogCaptureFixture
) -> None:
    answer(server, 0, "left")
    path = server.folder / "answers-ab.jsonl"
    whole = path.read_bytes()
    path.write_bytes(b"damaged\n")
    with caplog.at_level(logging.ERROR):
        status, content = ask(server, "/state?who=ab")
    assert status == 500
    assert "tell the organizer" in json.loads(content)["error"]
    assert str(path) in caplog.text
    assert answer(server, 1, "left") == -500
    path.write_bytes(whole)
    assert answer(server, 1, "left") == 2
