"""The architecture: rooms import only from rooms below them, and nothing imports in a circle.

`ROOMS` lists each package's rooms (its files and folders) from the bottom up. Every import counts,
also inside functions and under TYPE_CHECKING. ``docs/architecture.md`` draws the same picture.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

ROOMS = {
    "colorflux_core": (
        "errors",
        "digest",
        "files",
        "options",
        "lite_vision",
        "loading",
        "photos",
        "model",
        "bundles",
        "cli",
        "s3diff",
        "evaluation",
        "restore",
        "colorize",
    ),
    "colorflux_core/evaluation": (
        "rows",
        "scores",
        "benchmark",
        "metrics",
        "judges",
        "report",
        "study",
        "run_inputs",
        "run_command",
        "sets_command",
        "__main__",
    ),
    "nodes": (),
    "training": (
        "config",
        "data",
        "stage",
        "models",
        "encode",
        "run",
        "plan",
        "launch",
        "photos",
        "nano",
        "ablation",
        "structure",
        "basic_color",
        "pro_dpo",
        "prepare",
        "pretrain",
        "bundle",
        "ablations",
    ),
}

Graph = Mapping[str, set[str]]
"""By module, the modules it imports."""


def import_graph(sources: Mapping[str, str]) -> Graph:
    """The imports among modules, given their dotted names and sources.

    A package imports nothing by being on the way to its modules.
    """
    return {
        name: {target for target in imports(name, source, sources) if target != name}
        for name, source in sources.items()
    }


def imports(name: str, source: str, known: Mapping[str, str]) -> Iterator[str]:
    is_package = any(other.startswith(f"{name}.") for other in known)
    package = name.split(".") if is_package else name.split(".")[:-1]
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Import(names=names):
                # Undotted, it is another's: ``import nodes`` is ComfyUI's nodes.py.
                dotted = (alias.name for alias in names if "." in alias.name)
                yield from (name for name in dotted if name in known)
            case ast.ImportFrom(module=module, names=names, level=level):
                start = package[: len(package) - level + 1] if level else []
                base = ".".join([*start, *([module] if module else [])])
                for alias in names:
                    full = f"{base}.{alias.name}"
                    if full in known or base in known:
                        yield full if full in known else base


def circle(graph: Graph) -> list[str]:
    """Modules that import each other in a circle, if any do."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def upward_imports(graph: Graph, package: str, rooms: tuple[str, ...]) -> Iterator[str]:
    """Imports from a room of ``package`` to a room that is not below it, one line each."""
    prefix = package.replace("/", ".") + "."

    def room(module: str) -> str:
        return module.removeprefix(prefix).partition(".")[0]

    for name, targets in graph.items():
        for target in sorted(targets):
            if not (name.startswith(prefix) and target.startswith(prefix)):
                continue
            here, there = room(name), room(target)
            if here != there and rooms.index(there) > rooms.index(here):
                yield f"{name} imports {target}"


def read_sources(package: str) -> dict[str, str]:
    files = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
        for path in (ROOT / package).rglob("*.py")
    }
    return {name: path.read_text(encoding="utf-8") for name, path in files.items()}


@pytest.mark.parametrize("package", ROOMS)
def test_nothing_imports_in_a_circle(package: str) -> None:
    assert not circle(import_graph(read_sources(package)))


@pytest.mark.parametrize("package", [package for package, rooms in ROOMS.items() if rooms])
def test_rooms_import_only_from_rooms_below(package: str) -> None:
    assert not list(upward_imports(import_graph(read_sources(package)), package, ROOMS[package]))


@pytest.mark.parametrize("package", [package for package, rooms in ROOMS.items() if rooms])
def test_every_file_has_its_room(package: str) -> None:
    found = {path.stem for path in (ROOT / package).glob("*.py") if path.stem != "__init__"}
    found |= {path.parent.name for path in (ROOT / package).glob("*/__init__.py")}
    assert found == set(ROOMS[package])


@pytest.mark.parametrize(
    "source",
    [
        "from ..top import g",
        "from p.top import g",
        "import p.top",
        "from .. import top",
        "def f():\n    from ..top import g",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from ..top import g",
    ],
)
def test_a_circle_and_an_upward_import_are_seen(source: str) -> None:
    sources = {"p": "", "p.low": "", "p.low.a": source, "p.top": "from .low.a import f"}
    graph = import_graph(sources)
    assert set(circle(graph)) == {"p.low.a", "p.top"}
    assert list(upward_imports(graph, "p", ("low", "top"))) == ["p.low.a imports p.top"]


def test_downward_imports_and_neighbours_are_allowed() -> None:
    sources = {"p": "", "p.low": "", "p.low.a": "from .b import f", "p.low.b": "import os"}
    graph = import_graph(sources | {"p.top": "from .low.a import f\nfrom .low import b"})
    assert not circle(graph)
    assert not list(upward_imports(graph, "p", ("low", "top")))
