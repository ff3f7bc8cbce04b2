"""Records the nodes that the browser tests know, from a running ComfyUI without model files::

    python -m tests.frontend.record http://127.0.0.1:8188

These are the pack's nodes, the stock ones of its workflows, and those that the frontend takes for
granted. Record anew when a schema or a workflow changes.
"""

from __future__ import annotations

import json
import sys
import urllib.request
from typing import Any

from tests.frontend.server import RECORD, WORKFLOWS

# The graph that the frontend opens first, and the loaders of its model library.
TAKEN_FOR_GRANTED = {
    "CLIPTextEncode",
    "CheckpointLoaderSimple",
    "ControlNetLoader",
    "EmptyLatentImage",
    "GLIGENLoader",
    "ImageOnlyCheckpointLoader",
    "LoraLoader",
    "LoraLoaderModelOnly",
    "StyleModelLoader",
    "UNETLoader",
    "UpscaleModelLoader",
    "VAELoader",
}


def workflow_types() -> set[str]:
    """The node types in ``workflows/``, the frontend's own (notes, reroutes) among them."""
    return {node["type"] for path in WORKFLOWS for node in json.loads(path.read_bytes())["nodes"]}


def main() -> None:
    with urllib.request.urlopen(f"{sys.argv[1].rstrip('/')}/object_info") as answer:
        known: dict[str, Any] = json.load(answer)
    wanted = TAKEN_FOR_GRANTED | workflow_types()
    record = {
        name: info
        for name, info in sorted(known.items())
        if name in wanted or name.startswith("ColorFlux_")
    }
    RECORD.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(f"{len(record)} nodes: {RECORD}")


if __name__ == "__main__":
    main()
