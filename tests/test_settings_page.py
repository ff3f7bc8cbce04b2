"""docs/settings.md lists every setting as the code has it. After a change of one,
``python -m tests.test_settings_page > docs/settings.md`` writes it again."""

from __future__ import annotations

from pathlib import Path

from colorflux_core.cli.flags import shown, value_type
from colorflux_core.evaluation.report.table_text import markdown_lines
from colorflux_core.model.settings import Settings
from colorflux_core.options import Options, settings
from colorflux_core.photos.canvas import Canvas
from colorflux_core.s3diff.options import Restoration
from training.ablations import AblationsConfig
from training.basic_color import BasicColorConfig
from training.bundle import BundleConfig
from training.config import LoopConfig
from training.models.parts import PartsConfig
from training.nano.flux import FluxConfig
from training.nano.vae import VaeConfig
from training.prepare import PrepareConfig
from training.pretrain import VisionConfig
from training.pro_dpo import ProDpoConfig
from training.structure import StructureConfig

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "settings.md"

INTRODUCTION = """\
# Settings

All settings of the models and of training, with their defaults: the paper's, if it gives them. As
flags they are written with dashes, `--control-scale 0.8`; underscores are accepted too.
`python -m tests.test_settings_page > docs/settings.md` writes this page from the code.
"""

SECTIONS: list[tuple[str, str, list[type[Options]], list[type[Options]]]] = [
    (
        "Colorization",
        "Flags of `colorflux_core.colorize`, where the bundle's own values are the defaults; in\n"
        "Python, fields of `Settings`.",
        [Canvas, Settings],
        [],
    ),
    ("Restoration", "Flags of `colorflux_core.restore`.", [Restoration], []),
    ("Preparing photos", "Flags of `training.prepare`.", [PrepareConfig], []),
    ("Training", "Shared by all stages.", [LoopConfig], []),
    ("Training with FLUX", "Shared by all stages but the VAE.", [PartsConfig], [LoopConfig]),
    ("Structure", "`training.structure`.", [StructureConfig], [PartsConfig]),
    ("Basic color", "`training.basic_color`.", [BasicColorConfig], [PartsConfig]),
    ("Pro-DPO", "`training.pro_dpo`.", [ProDpoConfig], [PartsConfig]),
    ("Bundle", "`training.bundle`.", [BundleConfig], []),
    ("Nano: vision tower", "`training.pretrain vision`.", [VisionConfig], [LoopConfig]),
    ("Nano: VAE", "`training.pretrain vae`.", [VaeConfig], [LoopConfig]),
    ("Nano: FLUX", "`training.pretrain flux`.", [FluxConfig], [PartsConfig]),
    ("Ablations", "`training.ablations`.", [AblationsConfig], []),
]
"""Heading, text, the dataclasses that it is about, and those whose unchanged settings are known."""


FLAGS: dict[tuple[type[Options], str], str] = {
    (Canvas, "mode"): "canvas",
    (Canvas, "pixels"): "canvas_pixels",
}


def page() -> str:
    parts = [INTRODUCTION]
    for heading, text, own, known in SECTIONS:
        parts.append(f"## {heading}\n\n{text}\n\n" + table(own, known))
    return "\n".join(parts)


def table(own: list[type[Options]], known: list[type[Options]]) -> str:
    """Those of ``own`` that ``known`` do not have, or have with another default or help."""
    before = [row for options in known for row in rows(options)]
    lines = [row for options in own for row in rows(options) if row not in before]
    heading = [["setting", "default", "values", "what it does"], ["---"] * 4]
    return markdown_lines([*heading, *lines])


def rows(options: type[Options]) -> list[list[str]]:
    return [
        [
            f"`{FLAGS.get((options, name), name)}`",
            default(option.default),
            values(options, name),
            option.metadata["help"],
        ]
        for name, option in settings(options).items()
    ]


def default(value: object) -> str:
    if isinstance(value, Path) and value.is_relative_to(ROOT):
        return value.relative_to(ROOT).as_posix()
    return shown(value)


def values(options: type[Options], name: str) -> str:
    kind, choices = value_type(options, name)
    if choices:
        return ", ".join(choices)
    return "on, off" if kind is bool else str(settings(options)[name].metadata["range"])


def test_the_page_is_what_the_code_says() -> None:
    assert PAGE.read_text(encoding="utf-8") == page()


if __name__ == "__main__":
    print(page(), end="")
