"""The no-reference judges, and the server that DeQA-Score has to itself."""

from __future__ import annotations

import base64
import io
import json
import os
import re
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from colorflux_core.evaluation.judges.deqa import serve
from colorflux_core.evaluation.judges.endpoint import Endpoint
from colorflux_core.evaluation.judges.judge import Judge
from colorflux_core.evaluation.judges.nr_iqa import DEQA, Q_INSIGHT, VISUALQUALITY_R1
from colorflux_core.evaluation.judges.runner import Verdicts, judge_methods
from tests.evaluation.judges.judge_server import colorized, made, serving


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


def judged(judge: Judge, url: str, folder: Path, images: int = 3) -> Verdicts:
    benchmark = made(folder / "bench", images)
    return judge_methods(
        judge,
        Endpoint(url, judge.name, timeout=5, retries=0),
        [benchmark],
        [colorized(folder, benchmark)],
        folder / "replies.jsonl",
        concurrency=2,
        quiet=True,
    )


@pytest.mark.parametrize(
    ("judge", "reply", "system"),
    [
        (Q_INSIGHT, '<think>Clean.</think>\n<answer>{{"rating": {:.2f}}}</answer>', True),
        (VISUALQUALITY_R1, "<think>Clean.</think>\n<answer> {:.2f} </answer>", False),
    ],
    ids=["q-insight", "visualquality-r1"],
)
def test_judges_that_think_first(tmp_path: Path, judge: Judge, reply: str, system: bool) -> None:
    with serving(lambda asked: reply.format(1.25 + asked.number)) as server:
        verdicts = judged(judge, server.url, tmp_path)
    assert [score.value for score in verdicts.scores] == [1.25, 2.25, 3.25]
    assert {score.metric for score in verdicts.scores} == {*judge.metrics}
    assert {*verdicts.rationales.values()} == {"Clean."}
    messages = server.asked[0].body["messages"]
    assert [message["role"] for message in messages] == ["system", "user"][1 - system :]
    # No reference: the colorized image is all that is seen.
    [image] = server.asked[0].images
    assert image.getpixel((0, 0))[1] == 200  # type: ignore[index]


@contextmanager
def deqa(score: serve.Scorer) -> Iterator[str]:
    with serve.server(score) as serving:
        threading.Thread(target=serving.serve_forever, args=(0.02,), daemon=True).start()
        try:
            yield f"http://127.0.0.1:{serving.server_port}/v1"
        finally:
            serving.shutdown()


def red(image: Image.Image) -> float:
    pixel = image.getpixel((0, 0))
    assert isinstance(pixel, tuple) and image.mode == "RGB" and image.size == (20, 10)
    return 1 + pixel[0] / 3


def test_deqa_is_a_judge_like_others(tmp_path: Path) -> None:
    with deqa(red) as url:
        verdicts = judged(DEQA, url, tmp_path)
    assert [score.value for score in verdicts.scores] == [1 + number / 3 for number in range(3)]
    assert [score.metric for score in verdicts.scores] == ["DeQA"] * 3


def test_deqa_scores_one_image_at_a_time(tmp_path: Path) -> None:
    busy = threading.Lock()

    def score(image: Image.Image) -> float:
        assert busy.acquire(blocking=False)
        threading.Event().wait(0.02)
        busy.release()
        return red(image)

    with deqa(score) as url:
        verdicts = judged(DEQA, url, tmp_path, images=6)
    assert not any(score.is_missing for score in verdicts.scores)


def test_an_image_that_deqa_fails_on_is_missing(tmp_path: Path) -> None:
    def score(image: Image.Image) -> float:
        if red(image) >= 2:
            return float("nan")
        if red(image) > 1:
            raise RuntimeError("no memory")
        return red(image)

    with deqa(score) as url:
        verdicts = judged(DEQA, url, tmp_path, images=4)
    assert [score.value for score in verdicts.scores if not score.is_missing] == [1]
    assert ["no memory" in failure for failure in verdicts.failures].count(True) == 2
    assert "none of 3 replies could be parsed" in " ".join(verdicts.failures)


def post(url: str, body: bytes, **headers: str) -> tuple[int, Any]:
    try:
        with urllib.request.urlopen(urllib.request.Request(url, body, headers)) as answer:
            return answer.status, json.loads(answer.read())
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())


def chat(url: str) -> bytes:
    content = [{"type": "image_url", "image_url": {"url": url}}]
    return json.dumps({"messages": [{"role": "user", "content": content}]}).encode()


def test_what_deqa_is_asked_wrongly() -> None:
    encoded = io.BytesIO()
    Image.new("LA", (20, 10)).save(encoded, "PNG")
    image = base64.b64encode(encoded.getvalue()).decode()
    with deqa(red) as url:
        path = f"{url}/chat/completions"
        for body in (
            b"",
            b"{",
            b"[]",
            b'{"messages": [{"role": "user", "content": "text alone"}]}',
            chat("http://127.0.0.1/image.png"),
            chat("file:///etc/hostname"),
            chat("data:image/png;base64,????"),
            chat("data:image/png;base64,AAAA"),
            chat(f"data:image/png;base64,{image[:60]}"),
        ):
            status, answer = post(path, body)
            assert (status, "no readable image" in answer["error"]["message"]) == (400, True)
        assert post(f"{url}/embeddings", chat(f"data:image/png;base64,{image}"))[0] == 404
        assert post(path, b"", **{"Content-Length": str(10**12)})[0] == 413
        status, answer = post(path, chat(f"data:image/png;base64,{image}"))
        assert (status, answer["choices"][0]["message"]["content"]) == (200, '{"rating": 1.0}')


# In the form of DeQA-Score's own code, which asks a hub for parts of itself.
REMOTE_CODE = """
import torch
from transformers import AutoTokenizer, CLIPImageProcessorPil, PretrainedConfig, PreTrainedModel

class TinyConfig(PretrainedConfig):
    model_type = "tiny-deqa"

class TinyDeQA(PreTrainedModel):
    config_class = TinyConfig
    all_tied_weights_keys = {}

    def __init__(self, config):
        super().__init__(config)
        self.tokenizer = AutoTokenizer.from_pretrained("someone/somewhere")
        self.image_processor = CLIPImageProcessorPil.from_pretrained("someone/somewhere")
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def score(self, images):
        assert self.tokenizer.pad_token == "[PAD]" and self.image_processor.size["height"] == 8
        red = torch.tensor([image.getpixel((0, 0))[0] for image in images])
        return self.weight * (1 + red / 2)
"""


def test_deqa_comes_from_a_folder_alone(tmp_path: Path) -> None:
    folder, home = tmp_path / "model", tmp_path / "home"
    folder.mkdir()
    (folder / "tiny.py").write_text(REMOTE_CODE)
    auto_map = {"AutoConfig": "tiny.TinyConfig", "AutoModelForCausalLM": "tiny.TinyDeQA"}
    for name, content in {
        "config": {"model_type": "tiny-deqa", "auto_map": auto_map},
        "preprocessor_config": {
            "image_processor_type": "CLIPImageProcessor",
            "size": {"height": 8, "width": 8},
        },
        "tokenizer_config": {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "pad_token": "[PAD]",
        },
        "tokenizer": {
            "version": "1.0",
            "added_tokens": [],
            "model": {"type": "BPE", "vocab": {}, "merges": []},
        },
    }.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    save_file({"weight": torch.ones(1)}, folder / "model.safetensors", {"format": "pt"})
    process = subprocess.Popen(
        [sys.executable, serve.__file__, folder, "--port", "0", "--device", "cpu"],
        env={**os.environ, "HF_HOME": str(home), "HF_HUB_OFFLINE": "1"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout
        told = re.search(r"http://127\.0\.0\.1:\d+/v1", process.stdout.readline())
        assert told
        verdicts = judged(DEQA, told.group(), tmp_path)
    finally:
        process.kill()
        process.wait()
    assert [score.value for score in verdicts.scores] == [1, 1.5, 2]


def test_deqa_wants_a_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["serve.py", str(tmp_path)])
    with pytest.raises(SystemExit, match="2"):
        serve.main()
