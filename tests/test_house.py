"""The house rules: arrows point down, no surprise at run time, nothing foreign is shipped."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
MEBIBYTE = 2**20

COMFYUI = {
    "comfy",
    "comfy_api",
    "comfy_api_nodes",
    "comfy_execution",
    "comfy_extras",
    "execution",
    "folder_paths",
    "nodes",
    "server",
}
NETWORK = {
    "aiohttp",
    "ftplib",
    "http",
    "httpx",
    "huggingface_hub",
    "openai",
    "requests",
    "socket",
    "urllib",
}
PROCESSES = {"multiprocessing", "os.popen", "os.system", "subprocess"}
PICKLES = {"dill", "joblib", "marshal", "pickle", "shelve"}
ENVIRONMENT = {"os.environ", "os.environb", "os.getenv"}
CODE = {"__import__", "compile", "eval", "exec"}

# In ComfyUI the pack goes by another name, so its parts may not import each other by their own:
# there, ``nodes`` is ComfyUI's nodes.py.
IN_COMFYUI = (
    NETWORK | PROCESSES | PICKLES | ENVIRONMENT | CODE | {"colorflux_core", "server", "training"}
)
FORBIDDEN = {
    "__init__.py": COMFYUI | IN_COMFYUI,
    "colorflux_core": COMFYUI | IN_COMFYUI,
    "nodes": IN_COMFYUI,
    "training": COMFYUI | CODE,
}
# Evaluation talks to judges and to those who take part in a study, each in one file; no node may
# import it.
NETWORKED = {
    "colorflux_core/evaluation/judges/deqa/serve.py": {"http"},
    "colorflux_core/evaluation/judges/endpoint.py": {"openai"},
    "colorflux_core/evaluation/study/server.py": {"http", "socket", "urllib"},
}
# What a relative import may reach outside of the package.
NEIGHBOURS = {"__init__.py": {"nodes"}, "nodes": {"colorflux_core"}}
# Without its keyword such a call unpickles, or asks a model hub.
KEYWORD_NEEDED = {
    "torch.load": "weights_only",
    "from_pretrained": "local_files_only",
    "from_single_file": "local_files_only",
}
SOURCES = sorted(
    path.relative_to(ROOT)
    for part in FORBIDDEN
    for path in (ROOT / part, *(ROOT / part).rglob("*.py"))
    if path.is_file()
)


def broken_rules(source: str, path: Path) -> Iterator[str]:
    """What ``source`` may not do as the file at ``path`` (relative to the root), one line each."""
    package = path.parts[0]
    rules = FORBIDDEN[package] - NETWORKED.get(path.as_posix(), set())

    def forbidden(name: str) -> bool:
        return any(f"{name}.".startswith(f"{other}.") for other in rules)

    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Import(names=names):
                yield from (f"imports {alias.name}" for alias in names if forbidden(alias.name))
            case ast.ImportFrom(module=str(module), names=names, level=0):
                imported = (f"{module}.{alias.name}" for alias in names)
                yield from (f"imports {name}" for name in imported if forbidden(name))
            case ast.ImportFrom(level=1 | 2) if (
                "evaluation" in re.findall(r"\w+", ast.unparse(node))
                and "evaluation" not in path.parts
            ):
                yield "imports evaluation"
            case ast.ImportFrom(module=module, level=level) if level >= len(path.parts):
                neighbour = str(module).partition(".")[0]
                if level > len(path.parts) or neighbour not in NEIGHBOURS.get(package, ()):
                    yield f"a relative import leaves {package}"
            case ast.Name(id=name) if name in CODE:
                yield f"uses {name}"
            case ast.Attribute() if (name := ast.unparse(node)).startswith("os.") and forbidden(
                name
            ):
                yield f"uses {name}"
            case ast.Call(func=function, keywords=keywords) if package != "training":
                for callee, needed in KEYWORD_NEEDED.items():
                    given = any(
                        k.arg == needed and ast.unparse(k.value) == "True" for k in keywords
                    )
                    if f".{ast.unparse(function)}".endswith(f".{callee}") and not given:
                        yield f"calls {callee} without {needed}=True"


@pytest.mark.parametrize("path", SOURCES, ids=str)
def test_sources_keep_the_rules(path: Path) -> None:
    assert not list(broken_rules((ROOT / path).read_text(encoding="utf-8"), path))


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("colorflux_core/a.py", "import training.run.loop"),
        ("colorflux_core/a.py", "from colorflux_core import color"),
        ("colorflux_core/a.py", "from ..nodes import load"),
        ("colorflux_core/s3diff/a.py", "from ...training import loop"),
        ("colorflux_core/a.py", "def f():\n    from comfy.utils import ProgressBar"),
        ("colorflux_core/a.py", "import urllib.request as r"),
        ("colorflux_core/a.py", "from os import environ"),
        ("colorflux_core/a.py", "import os\nos.environ['HOME']"),
        ("colorflux_core/a.py", "eval('1')"),
        ("colorflux_core/a.py", "torch.load(path)"),
        ("colorflux_core/a.py", "torch.load(path, weights_only=False)"),
        ("colorflux_core/a.py", "FluxTransformer2DModel.from_pretrained(path)"),
        ("nodes/a.py", "from colorflux_core.photos.color import grayscale"),
        ("nodes/a.py", "from ..training import loop"),
        ("nodes/a.py", "from .. import training"),
        ("nodes/a.py", "from ...server import PromptServer"),
        ("nodes/a.py", "from server import PromptServer"),
        ("nodes/a.py", "import subprocess"),
        ("nodes/a.py", "from ..colorflux_core.evaluation import sets"),
        ("colorflux_core/a.py", "from .evaluation.sets import read_sets"),
        ("colorflux_core/evaluation/a.py", "import openai"),
        ("nodes/a.py", "import os\nos.getenv('HOME')"),
        ("nodes/a.py", "torch.load(path)"),
        ("__init__.py", "from .colorflux_core import color"),
        ("__init__.py", "import os\nos.environ.get('HOME')"),
        ("training/a.py", "import folder_paths"),
        ("training/a.py", "from nodes import load"),
    ],
)
def test_a_broken_rule_is_seen(path: str, source: str) -> None:
    assert list(broken_rules(source, Path(path)))


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("colorflux_core/a.py", "from .color import to_gray\nserver = 1\nserver.bit_length()"),
        ("colorflux_core/s3diff/a.py", "from ..color import to_gray"),
        ("colorflux_core/a.py", "import re, os.path\nre.compile('a')"),
        ("colorflux_core/a.py", "VAE.from_pretrained(path, local_files_only=True)"),
        ("nodes/a.py", "import nodes, folder_paths\nfrom comfy_api.latest import io"),
        (
            "nodes/a.py",
            "from .layout import to_image\nfrom ..colorflux_core.color import luminance",
        ),
        ("training/a.py", "from colorflux_core import color"),
        ("training/a.py", "from colorflux_core.evaluation.benchmark.sets import read_sets"),
        ("colorflux_core/evaluation/judges/endpoint.py", "import openai"),
        ("colorflux_core/evaluation/a.py", "from .sets import read_sets"),
    ],
)
def test_what_the_rules_allow(path: str, source: str) -> None:
    assert not list(broken_rules(source, Path(path)))


def test_the_root_imports_nothing_before_it_is_called() -> None:
    body = ast.parse((ROOT / "__init__.py").read_text(encoding="utf-8")).body
    imports = {ast.unparse(node) for node in body if isinstance(node, ast.Import | ast.ImportFrom)}
    assert imports <= {"from __future__ import annotations", "from typing import Any"}


IMPORT_EVERYTHING = """
import importlib, pkgutil, sys

class NoComfyUI:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {comfyui}:
            raise ImportError(f"ComfyUI is absent, and {{name}} with it")

def no_network(event, args):
    if event in ("socket.connect", "socket.getaddrinfo"):
        raise RuntimeError(f"the network was asked for {{args}}")

sys.meta_path.insert(0, NoComfyUI())
sys.addaudithook(no_network)
for package in {packages}:
    root = importlib.import_module(package)
    for module in pkgutil.walk_packages(root.__path__, package + "."):
        importlib.import_module(module.name)
"""


def test_core_and_training_import_without_comfyui_and_network() -> None:
    script = IMPORT_EVERYTHING.format(comfyui=COMFYUI, packages=["colorflux_core", "training"])
    run = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    assert not run.stderr  # No notices of the libraries on what else could be installed.


def test_requirements_leave_comfyuis_own_packages_alone() -> None:
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    names = [re.split(r"[^\w.-]", line)[0].lower() for line in lines if line[:1] not in ("", "#")]
    assert names
    assert not [name for name in names if re.match(r"torch|numpy|opencv|-", name)]


def shipped_files() -> list[Path]:
    """What git tracks, or would with the next ``git add``, relative to the root."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    try:
        listing = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"not a git checkout: {error}")
    paths = [Path(name) for name in listing.stdout.split("\0") if name]
    return [path for path in paths if (ROOT / path).is_file()]


# Written so as not to match itself.
FOREIGN = re.compile(
    rb"(?<![\w.])/(?:work|farm|home|root|Users)/"
    rb"|pypi[.]org|python[h]osted|registry[.]npmjs|deb[.]debian[.]org"
)


def test_no_text_names_a_machine_path_or_a_registry_host() -> None:
    found = {
        str(path): match.group()
        for path in shipped_files()
        if b"\0" not in (content := (ROOT / path).read_bytes())
        and (match := FOREIGN.search(content))
    }
    assert not found


def test_weights_are_safetensors_and_small() -> None:
    files = shipped_files()
    pickles = {".bin", ".ckpt", ".npy", ".npz", ".onnx", ".pkl", ".pt", ".pth"}
    assert not [path for path in files if path.suffix in pickles]
    models = [ROOT / path for path in files if path.parts[0] == "models"]
    assert sum(path.stat().st_size for path in models) < 40 * MEBIBYTE
