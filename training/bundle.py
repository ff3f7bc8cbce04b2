"""Combine the trained parts into one bundle, for ComfyUI and the command line.

  python -m training.bundle --recipe training/recipes/80gb.toml

The result is a diffusers folder with a colorflux.json.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch

from colorflux_core.bundles.bundle import assemble, save_bundle
from colorflux_core.model.settings import Settings
from colorflux_core.options import Options, inherit, setting
from colorflux_core.photos.canvas import Canvas

from .config import DATA, MODEL, parse
from .data.manifest import manifest_rows
from .launch import run_command
from .models.parts import PartsConfig

OUTPUT = "output"
DEFAULTS = "settings that users of the bundle get by default"


@dataclass
class BundleConfig(Options):
    output: Path = setting(Path("bundle"), "folder for the bundle", metavar="FOLDER", group=OUTPUT)
    dtype: Literal["float32", "bfloat16", "float16"] = setting(
        "float16", "precision of the stored weights", group=OUTPUT
    )
    base: Path = inherit(PartsConfig, "base")
    controlnet: Path | None = inherit(PartsConfig, "controlnet")
    redux: Path | None = inherit(PartsConfig, "redux")
    lora: Path | None = setting(
        None, "the Pro-DPO LoRA; without one, fading is not corrected", metavar="FILE", group=MODEL
    )
    manifest: Path | None = setting(
        None,
        "manifest of the training photos, whose sources and licenses the bundle lists",
        metavar="FILE",
        group=DATA,
    )
    canvas: int = inherit(PartsConfig, "canvas", group=DEFAULTS)
    guidance: float = inherit(Settings, "guidance", group=DEFAULTS)
    text_tokens: int = inherit(Settings, "text_tokens", group=DEFAULTS)
    detail: float = inherit(Settings, "detail", group=DEFAULTS)


def main(argv: list[str]) -> None:
    config = parse(BundleConfig, argv, "training.bundle")
    dtype = getattr(torch, config.dtype)
    bundle = assemble(
        transformer=config.base,
        vae=config.base,
        image_encoder=config.base,
        image_embedder=config.redux or config.base,
        controlnet=config.controlnet or config.base,
        lora=config.lora,
        dtype=dtype,
    )
    settings = replace(
        bundle.settings,
        canvas=Canvas("square", config.canvas),
        guidance=config.guidance,
        text_tokens=config.text_tokens,
        detail=config.detail,
    )
    photos = manifest_rows(config.manifest) if config.manifest else []
    save_bundle(
        config.output,
        bundle.pipeline,
        settings,
        dtype=dtype,
        sources=sorted({row["package"] for row in photos if row.get("package")}),
        licences=sorted({row["licence"] for row in photos if row.get("licence")}),
    )


if __name__ == "__main__":
    run_command(main)
