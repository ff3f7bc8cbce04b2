"""``python -m training.bundle``: the trained parts as one bundle, for ComfyUI and the shell."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from colorflux_core.bundle import save_bundle
from colorflux_core.lora import load_lora
from colorflux_core.resize import Canvas
from colorflux_core.settings import Settings

from .config import parse, run, setting
from .data import manifest_rows
from .parts import PartsConfig, pipeline


@dataclass
class BundleConfig(PartsConfig):
    lora: Path | None = setting(None, "the Pro-DPO LoRA; none leaves fine-color adjustment out")
    detail: float = setting(0.0, "share of the scan's fine detail that users get by default")
    dtype: Literal["float32", "bfloat16", "float16"] = setting(
        "float16", "type of the stored weights"
    )


def main(argv: list[str]) -> None:
    config = parse(BundleConfig, argv, "training.bundle")
    whole = pipeline(config)
    if config.lora is not None:
        load_lora(whole.transformer, config.lora)
    settings = Settings(
        canvas=Canvas("square", config.canvas),
        guidance=config.guidance,
        text_tokens=config.text_tokens,
        detail=config.detail,
    )
    photos = manifest_rows(config.manifest)
    save_bundle(
        config.output,
        whole,
        settings,
        dtype=getattr(torch, config.dtype),
        sources=sorted({row["package"] for row in photos if row.get("package")}),
        licences=sorted({row["licence"] for row in photos if row.get("licence")}),
    )


if __name__ == "__main__":
    run(main)
