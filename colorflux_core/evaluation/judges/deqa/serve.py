"""Serve DeQA-Score to the judge ``deqa`` through an OpenAI-compatible endpoint on this machine.

The model (You et al., CVPR 2025) only works with old library versions, so this is a standalone
script for a separate environment. It imports nothing from this package:

    python3.10 -m venv deqa
    deqa/bin/pip install -r requirements.txt
    deqa/bin/python serve.py DeQA-Score-Mix3

The folder is a copy of the published model. The model's own Python code is executed, so download
it from its authors.
"""

from __future__ import annotations

import argparse
import base64
import io
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from unittest import mock

from PIL import Image

MAX_BODY = 64 * 2**20
"""Maximum size of a request, in bytes."""

Scorer = Callable[[Image.Image], float]


def server(score: Scorer, port: int = 0) -> ThreadingHTTPServer:
    """Create a server on 127.0.0.1 that scores one image at a time. Port 0 picks a free port."""
    one_at_a_time = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            if self.path != "/v1/models":
                return self.answer(404, problem(f"no such path: {self.path}"))
            self.answer(200, {"object": "list", "data": [{"id": "deqa", "object": "model"}]})

        def do_POST(self) -> None:
            length = self.headers.get("Content-Length", "")
            if not length.isdigit() or int(length) > MAX_BODY:
                self.close_connection = True  # The body was not read.
                return self.answer(413, problem(f"Content-Length must be at most {MAX_BODY}"))
            body = self.rfile.read(int(length))
            if self.path != "/v1/chat/completions":
                return self.answer(404, problem(f"no such path: {self.path}"))
            try:
                image = last_image(json.loads(body))
            except (KeyError, OSError, RecursionError, TypeError, ValueError) as error:
                return self.answer(400, problem(f"the request has no readable image ({error})"))
            try:
                with one_at_a_time:
                    rating = score(image)
            except Exception as error:  # One bad image must not stop the server.
                return self.answer(500, problem(f"{type(error).__name__}: {error}"))
            self.answer(200, completion(json.dumps({"rating": rating})))

        def answer(self, status: int, content: object) -> None:
            body = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    return ThreadingHTTPServer(("127.0.0.1", port), Handler)


def last_image(request: Any) -> Image.Image:
    """Decode the last data URL of a chat request as RGB.

    Raises KeyError, OSError, TypeError or ValueError if the request has no valid image.
    """
    urls = [
        part["image_url"]["url"]
        for message in request["messages"]
        if not isinstance(message["content"], str)
        for part in message["content"]
        if part["type"] == "image_url"
    ]
    if not urls or not urls[-1].startswith("data:image/"):
        raise ValueError("no data URL")
    encoded = urls[-1].partition(";base64,")[2]
    with Image.open(io.BytesIO(base64.b64decode(encoded, validate=True))) as image:
        return image.convert("RGB")


def completion(text: str) -> dict:
    return {
        "id": "deqa",
        "object": "chat.completion",
        "created": 0,
        "model": "deqa",
        "choices": [
            {
                "index": 0,
                "finish_reason": "stop",
                "message": {"role": "assistant", "content": text},
            }
        ],
    }


def problem(message: str) -> dict:
    return {"error": {"message": message, "type": "invalid_request_error"}}


def load(folder: Path, device: str) -> Scorer:
    """Load the model and return its ``score`` method, which rates an image from 1 to 5."""
    import torch
    from transformers import AutoModelForCausalLM

    with everything_from(folder):
        model = AutoModelForCausalLM.from_pretrained(
            folder,
            trust_remote_code=True,
            local_files_only=True,
            attn_implementation="eager",
            torch_dtype=torch.float16,
            device_map={"": device},
        )
    return lambda image: float(model.score([image])[0])


@contextmanager
def everything_from(folder: Path) -> Iterator[None]:
    """Redirect the model code's tokenizer and processor downloads to the local folder."""
    local = {"local_files_only": True, "trust_remote_code": True}
    from transformers import AutoTokenizer
    from transformers.image_processing_utils import BaseImageProcessor

    with ExitStack() as stack:
        for loader in (AutoTokenizer, BaseImageProcessor):
            found = loader.from_pretrained.__func__

            def from_folder(cls: Any, _: object, found: Any = found, **options: Any) -> Any:
                return found(cls, folder, **{**options, **local})

            stack.enter_context(
                mock.patch.object(loader, "from_pretrained", classmethod(from_folder))
            )
        yield


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="a copy of DeQA-Score-Mix3")
    parser.add_argument("--port", type=int, default=8765, help="%(default)s; 0 is any free one")
    parser.add_argument("--device", default="cuda:0", help="%(default)s")
    args = parser.parse_args()
    if not (args.folder / "config.json").is_file():
        parser.error(f"{args.folder} has no config.json: pass the model's folder")
    with server(load(args.folder.resolve(), args.device), args.port) as serving:
        address = f"http://127.0.0.1:{serving.server_port}/v1"
        print(f"Serving DeQA-Score at {address}", flush=True)
        with suppress(KeyboardInterrupt):
            serving.serve_forever()


if __name__ == "__main__":
    main()
