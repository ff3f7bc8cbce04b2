"""What people's workflows rely on, and what every node owes to the one who wires it."""

from __future__ import annotations

import subprocess
import sys

import pytest

from colorflux_core.model.settings import Settings
from colorflux_core.options import Options, settings
from colorflux_core.photos.canvas import Canvas
from colorflux_core.s3diff.options import Restoration
from tests.nodes.pack import ROOT, load_pack, node_classes

# Workflows name these and load for ever. Add to the end of a node's inputs or outputs, never take
# away, rename, reorder or narrow; a default may change only with what it is the default of.
FROZEN = """
ColorFlux_LoadBundle "Load ColorFLUX Bundle"
  bundle COMBO = nano (embedded)
  lora_strength FLOAT = 1.0 in -10.0..10.0
  weight_dtype COMBO = default of default | fp8_e4m3fn | fp8_e4m3fn_fast | fp8_e5m2
  -> model MODEL
  -> control_net CONTROL_NET
  -> style_model STYLE_MODEL
  -> clip_vision CLIP_VISION
  -> vae VAE
  -> canvas_pixels INT

ColorFlux_SamplePhoto "Sample Old Photo"
  photo COMBO = stdlib_nagasaki-boats.jpg
  -> image IMAGE

ColorFlux_PreparePhoto "Prepare Photo"
  image IMAGE
  canvas COMBO = square of square | aspect
  pixels INT = 1024 in 16..16384
  -> gray IMAGE
  -> latent LATENT
  -> width INT
  -> height INT

ColorFlux_ReduxVisualPrompt "Redux Visual Prompt"
  clip_vision CLIP_VISION
  style_model STYLE_MODEL
  image IMAGE
  strength FLOAT = 1.0 in 0.0..10.0
  frames COMBO = one prompt each of one prompt each | one shared prompt
  text_tokens INT = -1 in -1..4096
  (reference) IMAGE
  (blend) FLOAT = 1.0 in 0.0..1.0
  (text) CONDITIONING
  -> conditioning CONDITIONING

ColorFlux_ApplyGrayControlNet "Apply Grayscale ControlNet"
  conditioning CONDITIONING
  control_net CONTROL_NET
  image IMAGE
  vae VAE
  strength FLOAT = 1.0 in 0.0..10.0
  start_percent FLOAT = 0.0 in 0.0..1.0
  end_percent FLOAT = 1.0 in 0.0..1.0
  union_mode COMBO = auto of auto | canny | tile | depth | blur | pose | gray | low quality
  -> conditioning CONDITIONING

ColorFlux_LoadProDPOLoRA "Load Pro-DPO LoRA"
  model MODEL
  lora COMBO
  strength FLOAT = 1.0 in -10.0..10.0
  -> model MODEL

ColorFlux_ResizeBack "Resize Back"
  image IMAGE
  original IMAGE
  detail FLOAT = 0.0 in 0.0..1.0
  -> colorized IMAGE

ColorFlux_Compare "Compare Photos"
  before IMAGE
  after IMAGE

ColorFlux_LoadS3Diff "Load S3Diff"
  s3diff COMBO
  sd_turbo COMBO
  -> s3diff COLORFLUX_S3DIFF

ColorFlux_S3DiffRestore "S3Diff Restore"
  s3diff COLORFLUX_S3DIFF
  image IMAGE
  scale FLOAT = 1.0 in 1.0..4.0
  tile INT = 768 in 256..4096
  color_fix COMBO = wavelet of wavelet | adain | none
  gray BOOLEAN = True
  seed INT = 0 in 0..18446744073709551615
  -> restored IMAGE
"""

# Their options are the files that are there.
FILES = {"bundle", "photo", "lora", "s3diff", "sd_turbo"}
IDS = [block.split()[0] for block in FROZEN.strip().split("\n\n")]


def described(node_id: str) -> str:
    """A node's schema in the form of ``FROZEN``."""
    schema = node_classes()[node_id].GET_SCHEMA()
    lines = [f'{schema.node_id} "{schema.display_name}"']
    for item in schema.inputs:
        facts = item.as_dict()
        line = f"  ({item.id})" if item.optional else f"  {item.id}"
        line += f" {item.io_type}"
        if "default" in facts:
            line += f" = {facts['default']}"
        if "max" in facts:
            line += f" in {facts['min']}..{facts['max']}"
        if "options" in facts and item.id not in FILES:
            line += f" of {' | '.join(facts['options'])}"
        lines.append(line)
    lines += [f"  -> {item.display_name} {item.io_type}" for item in schema.outputs or []]
    return "\n".join(lines)


def test_schemas_are_those_that_workflows_know() -> None:
    assert "\n\n".join(map(described, node_classes())) == FROZEN.strip()


@pytest.mark.parametrize("node_id", IDS)
def test_everything_has_a_tooltip_and_the_node_its_place(node_id: str) -> None:
    schema = node_classes()[node_id].GET_SCHEMA()
    slots = [*schema.inputs, *(schema.outputs or [])]
    assert not [item for item in slots if not (item.tooltip or "").endswith(".")]
    assert schema.category == "ColorFLUX"
    assert schema.description.endswith(".")


@pytest.mark.parametrize("node_id", IDS)
def test_defaults_are_within_their_options_and_steps(node_id: str) -> None:
    for item in node_classes()[node_id].GET_SCHEMA().inputs:
        facts = item.as_dict()
        if "default" not in facts:
            continue
        default = facts["default"]
        if "options" in facts:
            assert default in facts["options"]
        elif "min" in facts:
            assert facts["min"] <= default <= facts["max"]
            steps = (default - facts["min"]) / facts.get("step", 1)
            assert steps == pytest.approx(round(steps))


SETTINGS: dict[str, dict[str, tuple[type[Options], str]]] = {
    "ColorFlux_LoadBundle": {"lora_strength": (Settings, "lora_scale")},
    "ColorFlux_PreparePhoto": {"canvas": (Canvas, "mode"), "pixels": (Canvas, "pixels")},
    "ColorFlux_ApplyGrayControlNet": {
        "strength": (Settings, "control_scale"),
        "start_percent": (Settings, "control_start"),
        "end_percent": (Settings, "control_end"),
    },
    "ColorFlux_LoadProDPOLoRA": {"strength": (Settings, "lora_scale")},
    "ColorFlux_ResizeBack": {"detail": (Settings, "detail")},
    "ColorFlux_S3DiffRestore": {
        "scale": (Restoration, "scale"),
        "tile": (Restoration, "tile"),
        "color_fix": (Restoration, "color_fix"),
        "seed": (Restoration, "seed"),
    },
}


@pytest.mark.parametrize("node_id", SETTINGS)
def test_inputs_are_the_cores_settings(node_id: str) -> None:
    """Default and help text; the range too, or a part of it that fits a slider."""
    inputs = {item.id: item for item in node_classes()[node_id].GET_SCHEMA().inputs}
    for name, (options, field) in SETTINGS[node_id].items():
        setting, facts = settings(options)[field], inputs[name].as_dict()
        assert facts["default"] == setting.default
        assert (inputs[name].tooltip or "").lower().startswith(setting.metadata["help"].lower())
        if "min" in facts:
            assert facts["min"] in setting.metadata["range"]
            assert facts["max"] in setting.metadata["range"]


def test_only_compare_ends_a_workflow() -> None:
    ends = [i for i, node in node_classes().items() if node.GET_SCHEMA().is_output_node]
    assert ends == ["ColorFlux_Compare"]


STARTS_LIGHT = """
import sys
from tests.nodes.pack import load_pack, node_classes

load_pack()
import comfy.utils, comfy_api.latest, folder_paths, nodes

def no_network(event, args):
    if event in ("socket.connect", "socket.getaddrinfo", "subprocess.Popen", "os.system"):
        raise RuntimeError(f"{event}: {args}")

sys.addaudithook(no_network)
before = set(sys.modules)
for node in node_classes().values():
    node.GET_NODE_INFO_V1()
heavy = {"accelerate", "diffusers", "peft", "transformers"}
print(sorted(heavy & {name.partition(".")[0] for name in set(sys.modules) - before}))
"""


def test_comfyui_starts_as_fast_as_without_the_pack() -> None:
    load_pack()  # or skip
    run = subprocess.run(
        [sys.executable, "-c", STARTS_LIGHT], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert run.stdout.splitlines()[-1:] == ["[]"], run.stdout + run.stderr
