"""Whole workflows in ComfyUI's own executor: cache, Cancel, unloaded models, previews."""

# ruff: noqa: E402  ComfyUI's modules are there only once need_comfyui has found them.

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from tests.nodes.node_runs import run, stock_classes
from tests.nodes.pack import need_comfyui, node_classes

need_comfyui()

import comfy.model_management as mm
import comfy.utils
import execution  # type: ignore[import-not-found]
import folder_paths
import nodes

from colorflux_core.bundles.bundle import save_bundle
from colorflux_core.model.settings import Settings
from colorflux_core.photos.canvas import Canvas
from tests.nodes.comfy_models import colorized, nano, siglip_pipeline, use_folder

Graph = dict[str, dict[str, Any]]

FRAMES = torch.rand(3, 64, 64, 3, generator=torch.Generator().manual_seed(0))


class Browser:
    """What ComfyUI's server is to its executor: it is told of events."""

    client_id = "browser"
    last_node_id = last_prompt_id = None

    def __init__(self) -> None:
        self.sockets_metadata: dict[str, Any] = {}
        self.events: list[tuple[str, dict[str, Any]]] = []

    def send_sync(self, event: str, data: Any, client: str | None = None) -> None:
        self.events.append((event, data))


class ComfyUI:
    """ComfyUI without its web server."""

    def __init__(self) -> None:
        self.browser = Browser()
        self.executor = execution.PromptExecutor(self.browser)
        self.runs = 0

    def run(self, graph: Graph) -> dict[str, Any]:
        """The nodes' output in the browser; what happened is in ``browser.events``."""
        self.runs += 1
        self.browser.events.clear()
        valid, error, outputs, node_errors = asyncio.run(
            execution.validate_prompt(str(self.runs), graph, None)
        )
        assert valid, (error, node_errors)
        self.executor.execute(graph, str(self.runs), {"client_id": "browser"}, outputs)
        return self.executor.history_result["outputs"]

    def seen(self, event: str) -> list[dict[str, Any]]:
        return [data for name, data in self.browser.events if name == event]


@pytest.fixture
def comfyui(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ComfyUI]:
    for node_id, node in {**stock_classes(), **node_classes()}.items():
        monkeypatch.setitem(nodes.NODE_CLASS_MAPPINGS, node_id, node)
    monkeypatch.setattr(folder_paths, "temp_directory", str(tmp_path / "temp"))
    yield ComfyUI()
    mm.interrupt_current_processing(False)


def workflow(bundle: str = "nano (embedded)", detail: float = 0.0) -> Graph:
    """The nano workflow, small, without the node that saves."""
    sampling = {"steps": 2, "cfg": 1.0, "sampler_name": "euler", "scheduler": "simple"}
    return {
        "bundle": {
            "class_type": "ColorFlux_LoadBundle",
            "inputs": {"bundle": bundle, "lora_strength": 1.0, "weight_dtype": "default"},
        },
        "photo": {
            "class_type": "ColorFlux_SamplePhoto",
            "inputs": {"photo": "stdlib_nagasaki-boats.jpg"},
        },
        "gray": {
            "class_type": "ColorFlux_PreparePhoto",
            "inputs": {"image": ["photo", 0], "canvas": "aspect", "pixels": 64},
        },
        "prompt": {
            "class_type": "ColorFlux_ReduxVisualPrompt",
            "inputs": {
                "clip_vision": ["bundle", 3],
                "style_model": ["bundle", 2],
                "image": ["gray", 0],
                "strength": 1.0,
                "frames": "one prompt each",
                "text_tokens": -1,
            },
        },
        "control": {
            "class_type": "ColorFlux_ApplyGrayControlNet",
            "inputs": {
                "conditioning": ["prompt", 0],
                "control_net": ["bundle", 1],
                "image": ["gray", 0],
                "vae": ["bundle", 4],
                "strength": 1.0,
                "start_percent": 0.0,
                "end_percent": 1.0,
                "union_mode": "auto",
            },
        },
        "shift": {
            "class_type": "ModelSamplingFlux",
            "inputs": {
                "model": ["bundle", 0],
                "max_shift": 1.15,
                "base_shift": 0.5,
                "width": ["gray", 2],
                "height": ["gray", 3],
            },
        },
        "sample": {
            "class_type": "KSampler",
            "inputs": {
                "model": ["shift", 0],
                "positive": ["control", 0],
                "negative": ["control", 0],
                "latent_image": ["gray", 1],
                "seed": 0,
                "denoise": 1.0,
                **sampling,
            },
        },
        "decode": {
            "class_type": "VAEDecode",
            "inputs": {"samples": ["sample", 0], "vae": ["bundle", 4]},
        },
        "back": {
            "class_type": "ColorFlux_ResizeBack",
            "inputs": {"image": ["decode", 0], "original": ["photo", 0], "detail": detail},
        },
        "compare": {
            "class_type": "ColorFlux_Compare",
            "inputs": {"before": ["photo", 0], "after": ["back", 0]},
        },
    }


def preview(item: dict[str, str]) -> Tensor:
    """The picture (H, W, 3) of a preview."""
    assert item["type"] == "temp"
    path = Path(folder_paths.get_temp_directory(), item["subfolder"], item["filename"])
    with Image.open(path) as image:
        return torch.from_numpy(np.array(image.convert("RGB"))) / 255


def test_a_workflow_runs_and_its_slider_has_both_photos(comfyui: ComfyUI) -> None:
    output = comfyui.run(workflow())["compare"]
    assert comfyui.seen("execution_success")
    before, after = (preview(*output[name]) for name in ("a_images", "b_images"))
    (photo,) = run("ColorFlux_SamplePhoto")
    torch.testing.assert_close(before, photo[0], rtol=0, atol=1 / 255)
    assert after.shape == before.shape
    assert (after - before).abs().mean() > 0.02


@pytest.mark.usefixtures("comfyui")
def test_the_slider_has_every_frame() -> None:
    before, after = FRAMES, 1 - FRAMES[:2]
    shown = node_classes()["ColorFlux_Compare"].execute(before, after).ui
    for name, frames in (("a_images", before), ("b_images", after)):
        for item, frame in zip(shown[name], frames, strict=True):
            torch.testing.assert_close(preview(item), frame, rtol=0, atol=1 / 255)


def test_only_what_changed_runs_again(
    comfyui: ComfyUI, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_folder(monkeypatch, "colorflux", tmp_path)
    bundle = tmp_path / "tiny"
    save_bundle(bundle, siglip_pipeline(), Settings(canvas=Canvas(pixels=64), text_tokens=0))
    graph = workflow("tiny")

    def cached(graph: Graph) -> set[str]:
        comfyui.run(graph)
        assert comfyui.seen("execution_success")
        return set(comfyui.seen("execution_cached")[0]["nodes"])

    assert not cached(graph)
    assert cached(graph) == graph.keys()
    assert cached(workflow("tiny", detail=1.0)) == graph.keys() - {"back", "compare"}
    os.utime(bundle / "colorflux.json", ns=(1, 1))
    assert cached(workflow("tiny", detail=1.0)) == {"photo", "gray"}


LONG = {
    "ColorFlux_PreparePhoto": lambda: {"image": FRAMES, "pixels": 64},
    "ColorFlux_ResizeBack": lambda: {"image": FRAMES, "original": FRAMES, "detail": 1.0},
    "ColorFlux_ReduxVisualPrompt": lambda: {
        "clip_vision": nano().clip_vision,
        "style_model": nano().style_model,
        "image": FRAMES,
    },
}


@pytest.fixture
def progress(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Cancel is pressed as the first frame is done. As in main.py, the hook looks for it."""
    seen: list[int] = []

    def hook(value: int, total: int, *_: object, **__: object) -> None:
        seen.append(value)
        if len(seen) == 1:
            mm.interrupt_current_processing()
        mm.throw_exception_if_processing_interrupted()

    monkeypatch.setattr(comfy.utils, "PROGRESS_BAR_HOOK", hook)
    yield seen
    mm.interrupt_current_processing(False)


@pytest.mark.parametrize("node_id", LONG)
def test_cancel_stops_at_the_next_frame(node_id: str, progress: list[int]) -> None:
    inputs = LONG[node_id]()
    with pytest.raises(mm.InterruptProcessingException):
        run(node_id, **inputs)
    assert progress == [1]
    run(node_id, **inputs)
    assert progress[-1] == len(FRAMES)


@pytest.mark.usefixtures("progress")
def test_after_cancel_the_next_run_works(comfyui: ComfyUI) -> None:
    comfyui.run(workflow())
    (stopped,) = comfyui.seen("execution_interrupted")
    assert stopped["node_type"] == "ColorFlux_PreparePhoto"
    comfyui.run(workflow())
    assert comfyui.seen("execution_success")


def test_unloaded_models_come_back_as_they_were() -> None:
    image = FRAMES[:1]
    first = colorized(nano(), image)
    mm.unload_all_models()
    assert torch.equal(colorized(nano(), image), first)


def test_models_do_not_change_by_being_used() -> None:
    weights = {key: w.clone() for key, w in nano(0.0).model.model.state_dict().items()}
    colorized(nano(0.0), FRAMES[:1])
    mm.unload_all_models()
    after = nano(0.0).model.model.state_dict()
    assert all(torch.equal(after[key], weights[key]) for key in weights)
