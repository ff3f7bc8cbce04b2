"""The ready-made workflows: whole, within the schemas, and set as they say."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Iterator
from dataclasses import asdict
from itertools import combinations
from typing import Any

import pytest
from PIL import Image

from colorflux_core.bundles.bundle_config import CONFIG, EMBEDDED_NANO
from colorflux_core.model.settings import Settings
from tests.nodes.pack import ROOT, node_classes

Json = dict[str, Any]
Box = tuple[float, float, float, float]

WORKFLOWS = {
    path.stem: json.loads(path.read_bytes()) for path in (ROOT / "workflows").glob("*.json")
}
NANO = "Colorize (nano, runs anywhere)"
PAPER = "Colorize (FLUX.1-dev, ColorFLUX weights)"
TODAY = "Colorize today (FLUX.1-dev, public gray ControlNet)"
FRAMES = "Colorize a batch of frames"
RESTORE = "Restore and colorize"

# The frontend's own: a node that no ComfyUI lists, and the button under a choice of pictures.
NOTE = "MarkdownNote"
UPLOAD = "IMAGEUPLOAD"
WIDGET_TYPES = {"BOOLEAN", "COMBO", "FLOAT", "INT", "STRING", UPLOAD}
TITLE_HEIGHT = 30
# Of the model files, by the widget that names them.
FOLDERS = {
    "clip_name": "clip_vision",
    "clip_name1": "text_encoders",
    "clip_name2": "text_encoders",
    "control_net_name": "controlnet",
    "lora": "loras",
    "s3diff": "s3diff",
    "sd_turbo": "checkpoints",
    "style_model_name": "style_models",
    "unet_name": "diffusion_models",
    "vae_name": "vae",
}
# What the trainers or the conversion write, and nobody has published.
TO_BE_MADE = {
    "colorflux_gray_controlnet.safetensors",
    "colorflux_redux.safetensors",
    "colorflux_pro_dpo.safetensors",
    "s3diff.safetensors",
}

each = pytest.mark.parametrize("name", sorted(WORKFLOWS))


@functools.cache
def schemas() -> dict[str, Json]:
    """Every node as ``/object_info`` has it: stock ones recorded, the pack's as they are now."""
    record = ROOT / "tests" / "frontend" / "object_info.json"
    recorded: dict[str, Json] = json.loads(record.read_bytes())
    return recorded | {name: node.GET_NODE_INFO_V1() for name, node in node_classes().items()}


def nodes(name: str, *types: str) -> list[Json]:
    """A workflow's nodes, all but the notes or those of some types."""
    found: list[Json] = WORKFLOWS[name]["nodes"]
    return [node for node in found if (node["type"] in types if types else node["type"] != NOTE)]


def note_lines(name: str) -> list[str]:
    return [line for note in nodes(name, NOTE) for line in note["widgets_values"][0].splitlines()]


def input_specs(node: Json) -> dict[str, tuple[str, Json]]:
    """A node's inputs by name: type and facts, among them the options of a combo."""
    declared = schemas()[node["type"]]["input"]
    specs: dict[str, tuple[str, Json]] = {}
    for name, (kind, *more) in (declared["required"] | declared.get("optional", {})).items():
        facts = more[0] if more else {}
        if isinstance(kind, list):
            kind, facts = "COMBO", facts | {"options": kind}
        specs[name] = kind, facts
        if facts.get("image_upload"):
            specs["upload"] = UPLOAD, {}
    return specs


def widgets(node: Json) -> Json:
    """A node's widget values by name, as the frontend saves them one after the other."""
    values = iter(node.get("widgets_values", []))
    named = {}
    for name, (kind, facts) in input_specs(node).items():
        if kind in WIDGET_TYPES:
            named[name] = next(values)
            if facts.get("control_after_generate"):
                assert next(values) == "fixed"
    assert not list(values), f"{node['type']} has values for no widget"
    return named


def files(node: Json) -> dict[str, str]:
    """The model files that a node loads, and their folders."""
    return {
        value: FOLDERS[widget]
        for widget, value in widgets(node).items()
        if str(value).endswith(".safetensors")
    }


def box(node: Json) -> Box:
    (x, y), (width, height) = node["pos"], node["size"]
    return x, y - TITLE_HEIGHT, x + width, y + height


def group_boxes(name: str) -> Iterator[Box]:
    for x, y, width, height in (group["bounding"] for group in WORKFLOWS[name]["groups"]):
        yield x, y, x + width, y + height


def overlap(a: Box, b: Box) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def inside(a: Box, b: Box) -> bool:
    return b[0] <= a[0] and b[1] <= a[1] and a[2] <= b[2] and a[3] <= b[3]


@each
def test_sockets_are_the_schemas(name: str) -> None:
    for node in nodes(name):
        schema, specs = schemas()[node["type"]], input_specs(node)
        declared = list(zip(schema["output_name"] or (), schema["output"] or (), strict=True))
        assert [(slot["name"], slot["type"]) for slot in node["outputs"]] == declared
        slots = {slot["name"]: slot for slot in node["inputs"]}
        assert {i: slot["type"] for i, slot in slots.items()} == {i: specs[i][0] for i in specs}
        unconnected = [
            i
            for i in schema["input"]["required"]
            if i in specs and specs[i][0] not in WIDGET_TYPES and slots[i]["link"] is None
        ]
        assert not unconnected, f"{node['type']} lacks {unconnected}"


@each
def test_links_join_slots_of_one_type_from_left_to_right(name: str) -> None:
    workflow = WORKFLOWS[name]
    by_id = {node["id"]: node for node in workflow["nodes"]}
    leaving, arriving = set(), set()
    for node in workflow["nodes"]:
        for position, slot in enumerate(node["outputs"]):
            leaving |= {(link, node["id"], position, slot["type"]) for link in slot["links"] or []}
        for position, slot in enumerate(node["inputs"]):
            if slot["link"] is not None:
                arriving.add((slot["link"], node["id"], position, slot["type"]))
    assert leaving == {(link, a, out, kind) for link, a, out, _, _, kind in workflow["links"]}
    assert arriving == {(link, b, into, kind) for link, _, _, b, into, kind in workflow["links"]}
    for _, a, _, b, _, _ in workflow["links"]:
        assert by_id[a]["pos"][0] <= by_id[b]["pos"][0]


@each
def test_ids_are_numbered_through(name: str) -> None:
    workflow = WORKFLOWS[name]
    ids, links = [n["id"] for n in workflow["nodes"]], [link[0] for link in workflow["links"]]
    assert len(ids) == len(set(ids)) and max(ids) == workflow["last_node_id"]
    assert len(links) == len(set(links)) and max(links) == workflow["last_link_id"]
    assert workflow["version"] == 0.4


@each
def test_widgets_are_within_the_schemas(name: str) -> None:
    for node in nodes(name):
        specs = input_specs(node)
        for widget, value in widgets(node).items():
            kind, facts = specs[widget]
            where = f"{node['type']}: {widget} = {value}"
            if kind in ("INT", "FLOAT"):
                assert isinstance(value, int if kind == "INT" else int | float), where
                assert facts["min"] <= value <= facts["max"], where
            elif kind == "COMBO":
                assert value in facts["options"] or value in files(node), where
            else:
                assert isinstance(value, bool if kind == "BOOLEAN" else str), where


@each
def test_every_file_can_be_found(name: str) -> None:
    lines = note_lines(name)
    for node in nodes(name):
        models = node["properties"].get("models", [])
        assert {model["name"] for model in models} == files(node).keys() - TO_BE_MADE
        for file, folder in files(node).items():
            assert [line for line in lines if file in line and folder in line], file
        for model in models:
            assert model["directory"] == files(node)[model["name"]]
            assert re.fullmatch(r"https://huggingface\.co/.+/resolve/main/.+", model["url"])
            published = model["url"].rpartition("/")[2]
            renamed = [line for line in lines if published in line and "rename" in line]
            assert published == model["name"] or renamed


@each
def test_it_reads_at_a_glance(name: str) -> None:
    workflow, groups = WORKFLOWS[name], list(group_boxes(name))
    assert nodes(name, NOTE)
    assert all(group["title"] for group in workflow["groups"])
    assert not [pair for pair in combinations(groups, 2) if overlap(*pair)]
    assert not [pair for pair in combinations(map(box, workflow["nodes"]), 2) if overlap(*pair)]
    for node in nodes(name):
        assert [group for group in groups if inside(box(node), group)], node["type"]
    for note in nodes(name, NOTE):
        assert not [group for group in groups if overlap(box(note), group)]


@each
def test_thumbnail(name: str) -> None:
    path = ROOT / "workflows" / f"{name}.jpg"
    with Image.open(path) as picture:
        assert picture.format == "JPEG" and picture.width == picture.height >= 400
    assert path.stat().st_size < 60_000


def test_no_thumbnail_is_left_over() -> None:
    assert {path.stem for path in (ROOT / "workflows").glob("*.jpg")} == set(WORKFLOWS)


def only(name: str, node_type: str) -> Json:
    """The widget values of the one node of a type."""
    (node,) = nodes(name, node_type)
    return widgets(node)


def source(name: str, node_type: str, slot: str) -> tuple[str, str]:
    """Type and output of the node that is linked to an input of the one node of a type."""
    (node,) = nodes(name, node_type)
    (link,) = [i["link"] for i in node["inputs"] if i["name"] == slot]
    ((origin, output),) = [(a, out) for i, a, out, *_ in WORKFLOWS[name]["links"] if i == link]
    (found,) = [n for n in nodes(name) if n["id"] == origin]
    return found["type"], found["outputs"][output]["name"]


def chosen(name: str) -> Json:
    """What a workflow sets, by the names of ``Settings``."""
    sample = only(name, "KSampler")
    control = only(name, "ColorFlux_ApplyGrayControlNet")
    prepare = only(name, "ColorFlux_PreparePhoto")
    return {
        "canvas": {"mode": prepare["canvas"], "pixels": prepare["pixels"]},
        "steps": sample["steps"],
        "seed": sample["seed"],
        "control_scale": control["strength"],
        "control_start": control["start_percent"],
        "control_end": control["end_percent"],
        "detail": only(name, "ColorFlux_ResizeBack")["detail"],
    }


@each
def test_sampling_has_the_papers_schedule(name: str) -> None:
    sample, shift = only(name, "KSampler"), only(name, "ModelSamplingFlux")
    assert (sample["sampler_name"], sample["scheduler"]) == ("euler", "simple")
    assert (sample["cfg"], sample["denoise"]) == (1, 1)
    assert (shift["max_shift"], shift["base_shift"]) == (1.15, 0.5)
    for side in ("width", "height"):
        assert source(name, "ModelSamplingFlux", side) == ("ColorFlux_PreparePhoto", side)


def test_the_papers_settings() -> None:
    settings = asdict(Settings())
    assert chosen(PAPER).items() <= settings.items()
    assert only(PAPER, "FluxGuidance")["guidance"] == settings["guidance"]
    assert only(PAPER, "ColorFlux_LoadProDPOLoRA")["strength"] == settings["lora_scale"]


@pytest.mark.parametrize("name", [NANO, FRAMES, RESTORE])
def test_nanos_settings(name: str) -> None:
    settings = json.loads((EMBEDDED_NANO / CONFIG).read_bytes())["settings"]
    canvas = settings.pop("canvas")
    mine = chosen(name)
    assert mine.pop("canvas")["mode"] == canvas["mode"]
    assert mine.items() <= settings.items()
    assert only(name, "ColorFlux_LoadBundle")["lora_strength"] == settings["lora_scale"]
    bundles_size = ("ColorFlux_LoadBundle", "canvas_pixels")
    assert source(name, "ColorFlux_PreparePhoto", "pixels") == bundles_size


def test_todays_settings_are_those_of_the_controlnets_authors() -> None:
    advised = {"control_scale": 0.9, "control_end": 0.8, "steps": 30}
    assert chosen(TODAY) == chosen(PAPER) | advised
    assert only(TODAY, "FluxGuidance")["guidance"] == 3.5
    assert only(TODAY, "ColorFlux_ApplyGrayControlNet")["union_mode"] == "auto"


def test_frames_share_prompt_and_noise() -> None:
    assert only(FRAMES, "ColorFlux_ReduxVisualPrompt")["frames"] == "one shared prompt"
    assert only(FRAMES, "LatentBatchSeedBehavior")["seed_behavior"] == "fixed"
    assert source(FRAMES, "KSampler", "latent_image") == ("LatentBatchSeedBehavior", "LATENT")


def test_the_restored_scan_goes_on_in_place_of_the_scan() -> None:
    restored = ("ColorFlux_S3DiffRestore", "restored")
    assert source(RESTORE, "ColorFlux_PreparePhoto", "image") == restored
    assert source(RESTORE, "ColorFlux_ResizeBack", "original") == restored
    assert source(RESTORE, "ColorFlux_Compare", "before") == ("ColorFlux_SamplePhoto", "image")
    restore = only(RESTORE, "ColorFlux_S3DiffRestore")
    assert (restore["scale"], restore["gray"]) == (1, True)
