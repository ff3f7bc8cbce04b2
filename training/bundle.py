"""``python -m training.bundle``: the trained parts as one bundle, for ComfyUI and the shell."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from colorflux_core.bundle import assemble, save_bundle
from colorflux_core.components import FLUX_SCHEDULE
from colorflux_core.resize import Canvas
from colorflux_core.settings import Settings

from .config import Config, parse, run, setting
from .data import manifest_rows


@dataclass
class BundleConfig(Config):
    output: Path = setting(Path("bundle"), "folder for the bundle")
    base: Path = setting(Path("base"), "diffusers pipeline folder that the parts come from")
    controlnet: Path | None = setting(None, "the gray ControlNet, where it is not in --base")
    redux: Path | None = setting(None, "Redux, where it is not the image_embedder in --base")
    lora: Path | None = setting(None, "the Pro-DPO LoRA; none leaves fine-color adjustment out")
    manifest: Path | None = setting(None, "the training photos, whose sources the bundle names")
    canvas: int = setting(1024, "side in pixels of the square that it was trained on", low=16)
    guidance: float = setting(Settings.guidance, "what a guidance-distilled FLUX is told", low=0)
    text_tokens: int = setting(Settings.text_tokens, "zero tokens before the visual prompt", low=0)
    steps: int = setting(Settings.steps, "Euler steps that users get by default", low=1)
    base_shift: float = setting(
        FLUX_SCHEDULE["base_shift"],
        "mu of the schedule at 256 tokens; 0 spaces the steps evenly: after a long first step the"
        " colors are the mean of what is likely rather than what the noise happens to say",
    )
    max_shift: float = setting(FLUX_SCHEDULE["max_shift"], "mu of the schedule at 4096 tokens")
    detail: float = setting(
        Settings.detail, "share of the scan's fine detail that users get by default", low=0, high=1
    )
    dtype: Literal["float32", "bfloat16", "float16"] = setting(
        "float16", "type of the stored weights"
    )


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
    bundle.pipeline.scheduler.register_to_config(
        base_shift=config.base_shift, max_shift=config.max_shift
    )
    settings = Settings(
        canvas=Canvas("square", config.canvas),
        guidance=config.guidance,
        text_tokens=config.text_tokens,
        steps=config.steps,
        detail=config.detail,
    )
    photos = manifest_rows(config.manifest) if config.manifest else []
    save_bundle(
        config.output,
        bundle.pipeline,
        settings,
        dtype=dtype,
        sources=sorted({row["source"] for row in photos if row.get("source")}),
        licences=sorted({row["licence"] for row in photos if row.get("licence")}),
    )


if __name__ == "__main__":
    run(main)
