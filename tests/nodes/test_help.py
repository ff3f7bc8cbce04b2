"""What an artist reads around the nodes, and that a download holds it.

After a change of the schemas, ``python -m tests.nodes.test_help > locales/en/nodeDefs.json``
writes the English texts anew; the others are translated from them by hand.
"""

from __future__ import annotations

import json
import re
import subprocess
from typing import Any

import pytest

from tests.nodes.pack import ROOT, node_classes

HELP = ROOT / "web" / "docs"
# Where ComfyUI's frontend looks: first for the language, then for the page without one.
PAGES = {"en": "{}.md", "zh": "{}/zh.md"}
LANGUAGES = pytest.mark.parametrize("language", PAGES)

# vue-i18n reads these as the start of a placeholder, a link to another message or a plural.
MESSAGE_SYNTAX = re.compile(r"[{}@|$]")
HAN = re.compile(r"[\u4e00-\u9fff]")
LINK = re.compile(r"\]\((?!https?:)([^)#\s]+)")

NEEDED = (
    "__init__.py",
    "colorflux_core/",
    "docs/photos/old/",
    "LICENSE",
    "locales/",
    "models/nano/",
    "nodes/",
    "pyproject.toml",
    "README.md",
    "requirements.txt",
    "training/",
    "web/",
    "workflows/",
)


def described(name: str, tooltip: str) -> dict[str, str]:
    return {"name": name, "tooltip": tooltip}


def schema_texts() -> dict[str, Any]:
    """Every text of the live schemas, in the form of a ``nodeDefs.json``."""
    schemas = {node_id: node.GET_SCHEMA() for node_id, node in node_classes().items()}
    return {
        node_id: {
            "display_name": schema.display_name,
            "description": schema.description,
            "inputs": {
                socket.id: described(socket.display_name or socket.id, socket.tooltip)
                for socket in schema.inputs
            },
            "outputs": {
                str(index): described(socket.display_name, socket.tooltip)
                for index, socket in enumerate(schema.outputs or [])
            },
        }
        for node_id, schema in schemas.items()
    }


def translation(language: str) -> dict[str, Any]:
    path = ROOT / "locales" / language / "nodeDefs.json"
    translated: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return translated


def leaves(texts: dict[str, Any], *above: str) -> dict[tuple[str, ...], str]:
    found: dict[tuple[str, ...], str] = {}
    for key, value in texts.items():
        path = (*above, key)
        found.update(leaves(value, *path) if isinstance(value, dict) else {path: value})
    return found


def test_english_is_what_the_schemas_say() -> None:
    assert translation("en") == schema_texts()


def test_chinese_has_every_text_in_chinese() -> None:
    chinese, english = leaves(translation("zh")), leaves(schema_texts())
    assert chinese.keys() == english.keys()
    # A name may be a name: VAE, ControlNet.
    assert not [
        path for path, text in chinese.items() if path[-1] != "name" and not HAN.search(text)
    ]


@LANGUAGES
def test_no_text_is_read_as_message_syntax(language: str) -> None:
    texts = leaves(translation(language))
    assert not {path: text for path, text in texts.items() if MESSAGE_SYNTAX.search(text)}


def test_no_page_is_left_over() -> None:
    wanted = {page.format(node_id) for page in PAGES.values() for node_id in node_classes()}
    assert {path.relative_to(HELP).as_posix() for path in HELP.rglob("*.md")} == wanted


@LANGUAGES
def test_the_tables_of_a_page_are_the_nodes_sockets(language: str) -> None:
    names = translation(language)
    for node_id, node in schema_texts().items():
        page = (HELP / PAGES[language].format(node_id)).read_text(encoding="utf-8")
        first_cells = "\n".join(re.findall(r"^\|([^|]*)\|", page, re.MULTILINE))
        shown = re.findall(r"([^\s、]*) ?`(\w+)`", first_cells)
        outputs = [output["name"] for output in node["outputs"].values()]
        assert [socket for _, socket in shown] == [*node["inputs"], *outputs], node_id
        if language != "en":
            translated = [*names[node_id]["inputs"].values(), *names[node_id]["outputs"].values()]
            assert [name for name, _ in shown] == [socket["name"] for socket in translated], node_id


# Inputs that are settings of the core.
SETTINGS = {
    "ColorFlux_LoadBundle": ["lora_strength"],
    "ColorFlux_PreparePhoto": ["canvas", "pixels"],
    "ColorFlux_ReduxVisualPrompt": ["text_tokens"],
    "ColorFlux_ApplyGrayControlNet": ["strength", "start_percent", "end_percent"],
    "ColorFlux_LoadProDPOLoRA": ["strength"],
    "ColorFlux_ResizeBack": ["detail"],
    "ColorFlux_S3DiffRestore": ["scale", "tile", "color_fix", "gray", "seed"],
}


@LANGUAGES
def test_a_pages_table_describes_settings_as_the_tooltips_do(language: str) -> None:
    texts = translation(language)
    for node_id, names in SETTINGS.items():
        page = (HELP / PAGES[language].format(node_id)).read_text(encoding="utf-8")
        for name in names:
            tooltip = texts[node_id]["inputs"][name]["tooltip"]
            assert f"`{name}` | {tooltip} |" in page, (node_id, name)


def test_help_pages_link_to_no_file() -> None:
    """ComfyUI resolves links against its own address, not the page's."""
    assert not {
        str(path): links
        for path in HELP.rglob("*.md")
        if (links := LINK.findall(path.read_text(encoding="utf-8")))
    }


def tracked(*options: str) -> list[str]:
    command = ["git", "ls-files", "-z", "--cached", *options]
    try:
        listing = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"not a git checkout: {error}")
    return [name for name in listing.stdout.split("\0") if name]


def test_links_lead_to_files() -> None:
    texts = [ROOT / name for name in tracked("*.md")]
    assert ROOT / "README.md" in texts
    assert not [
        f"{path.relative_to(ROOT)}: {target}"
        for path in texts
        for target in LINK.findall(path.read_text(encoding="utf-8"))
        if not (path.parent / target).exists()
    ]


def test_a_download_holds_all_that_runs() -> None:
    left_out = tracked("--ignored", "--exclude-from=.comfyignore")
    assert any(name.startswith("tests/") for name in left_out)
    assert not [name for name in left_out if name.startswith(NEEDED)]


if __name__ == "__main__":
    print(json.dumps(schema_texts(), indent=2, ensure_ascii=False))
