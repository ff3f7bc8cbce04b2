"""A real OpenAI-compatible server on loopback that behaves as a test wants; and what is judged."""

from __future__ import annotations

import base64
import io
import json
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from colorflux_core.evaluation.benchmark.methods import Method
from colorflux_core.evaluation.benchmark.sets import BenchmarkSet, Item
from colorflux_core.evaluation.judges.qwen_score import ASPECTS


class Asked(NamedTuple):
    """One request, as it came over the wire."""

    path: str
    headers: dict[str, str]
    body: dict[str, Any]

    @property
    def images(self) -> list[Image.Image]:
        urls = [
            part["image_url"]["url"]
            for message in self.body["messages"]
            if isinstance(message["content"], list)
            for part in message["content"]
            if part["type"] == "image_url"
        ]
        assert all(url.startswith("data:image/png;base64,") for url in urls)
        return [Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))) for url in urls]

    @property
    def number(self) -> int:
        """Of the image that is judged: see :func:`made`."""
        pixel = self.images[-1].getpixel((0, 0))
        assert isinstance(pixel, tuple)
        return int(pixel[0])


class Raw(NamedTuple):
    """An HTTP answer byte for byte."""

    body: bytes
    content_type: str = "application/json"
    status: int = 200


class Late(NamedTuple):
    seconds: float
    answer: str


class Silent:
    """The connection is accepted, and then nothing."""


Behavior = Callable[[Asked], "str | Raw | Late | Silent"]


@dataclass
class Serving:
    url: str
    asked: list[Asked] = field(default_factory=list)
    at_once: int = 0
    most_at_once: int = 0

    @property
    def numbers(self) -> list[int]:
        return sorted(asked.number for asked in self.asked)


@contextmanager
def serving(behave: Behavior) -> Iterator[Serving]:
    over, lock = threading.Event(), threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            headers = {name.lower(): value for name, value in self.headers.items()}
            asked = Asked(self.path, headers, body)
            with lock:
                server.asked.append(asked)
                server.at_once += 1
                server.most_at_once = max(server.most_at_once, server.at_once)
            answer = behave(asked)
            if isinstance(answer, Late):
                time.sleep(answer.seconds)
                answer = answer.answer
            with lock:
                server.at_once -= 1
            if isinstance(answer, Silent):
                over.wait(30)
                self.close_connection = True
                return
            raw = answer if isinstance(answer, Raw) else Raw(completion(answer))
            self.send_response(raw.status)
            self.send_header("Content-Type", raw.content_type)
            self.send_header("Content-Length", str(len(raw.body)))
            self.end_headers()
            self.wfile.write(raw.body)

        def log_message(self, *_: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        request_queue_size = 64

        def handle_error(self, *_: object) -> None:
            pass  # A client that was killed.

    with Server(("127.0.0.1", 0), Handler) as http:
        server = Serving(f"http://127.0.0.1:{http.server_port}/v1")
        threading.Thread(target=http.serve_forever, args=(0.02,), daemon=True).start()
        try:
            yield server
        finally:
            over.set()
            http.shutdown()


def completion(text: str) -> bytes:
    message = {"role": "assistant", "content": text}
    choice = {"index": 0, "finish_reason": "stop", "message": message}
    return json.dumps({"id": "1", "object": "chat.completion", "choices": [choice]}).encode()


def failing(status: int) -> Raw:
    return Raw(b'{"error": {"message": "it is broken"}}', status=status)


def six(**changed: object) -> str:
    """A good reply of Qwen-score, all aspects at 50."""
    return json.dumps({**dict.fromkeys(ASPECTS, 50), "rationale": "so so", **changed})


def by_number(asked: Asked) -> str:
    """A different reply for each image."""
    return six(**{aspect: asked.number + place for place, aspect in enumerate(ASPECTS)})


def made(folder: Path, images: int, name: str = "real") -> BenchmarkSet:
    """A set of gray images."""
    (folder / name).mkdir(parents=True)
    items = []
    for number in range(images):
        path = folder / name / f"{number}.png"
        Image.new("RGB", (20, 10), (number,) * 3).save(path)
        items.append(Item(str(number), path, None))
    return BenchmarkSet(name, tuple(items))


def colorized(folder: Path, benchmark: BenchmarkSet, name: str = "DDColor") -> Method:
    """Results whose red is the image's number; no two methods or sets have the same."""
    own = zlib.crc32(f"{name}/{benchmark.name}".encode()) % 256
    results = folder / name / benchmark.name
    results.mkdir(parents=True)
    for number, item in enumerate(benchmark.items):
        Image.new("RGB", (20, 10), (number, 200, own)).save(results / f"{item.name}.png")
    return Method(name, folder / name)
