"""A whole training set-up that takes a second: synthetic photos, a tiny base of real classes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tests.nano_models import tiny_pipeline
from training.basic_color import BasicColorConfig, basic_color_training
from training.config import LoopConfig
from training.models.parts import PartsConfig
from training.nano.flux import FluxConfig, flux_training
from training.nano.vae import VaeConfig, vae_training
from training.pro_dpo import ProDpoConfig, pro_dpo_training
from training.stage import Training
from training.structure import StructureConfig, structure_training

CANVAS = 32
TRAIN, VALIDATION = 8, 2
COLORFUL = TRAIN - 1
"""All but one of the training photos have color."""

STAGES: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "vae": (VaeConfig, vae_training, {"crop": 16, "views": 3, "learning_rate": 1e-4}),
    "flux": (FluxConfig, flux_training, {"heads": 1, "single_blocks": 1, "prompt_width": 32}),
    "structure": (StructureConfig, structure_training, {"double_blocks": 1, "single_blocks": 2}),
    "basic_color": (BasicColorConfig, basic_color_training, {}),
    "pro_dpo": (ProDpoConfig, pro_dpo_training, {"rank": 4, "pairs": 2}),
}
"""Config, stage and what a tiny one needs, by name; the first two make nano's base."""


@dataclass(frozen=True)
class Setup:
    """Photos (the last training photo is gray) and a base, under one folder."""

    folder: Path

    def config(self, name: str, output: Path, **changes: Any) -> Any:
        config_class, _, tiny = STAGES[name]
        common: dict[str, Any] = {
            "output": output,
            "photos": self.folder / "photos",
            "manifest": self.folder / "photos.csv",
            "canvas": CANVAS,
            "steps": 10,
            "batch_size": 4,
            "learning_rate": 1e-3,
            "cache": self.folder / "cache",
            "workers": 0,
            "precision": "no",
            "tracker": "none",
        }
        if issubclass(config_class, PartsConfig):
            common |= {
                "base": self.folder / "base",
                "frozen": "float32",
                "text_tokens": 2,
            }
        return config_class(**common | tiny | changes)

    def training(self, name: str, config: LoopConfig) -> Training:
        return STAGES[name][1](config)


def make_setup(folder: Path) -> Setup:
    (folder / "photos").mkdir(parents=True)
    lines = ["file,split"]
    for index in range(TRAIN + VALIDATION):
        name = f"{index}.png"
        photo = synthetic_photo(index)
        gray = index == TRAIN - 1
        (photo.convert("L") if gray else photo).save(folder / "photos" / name)
        lines.append(f"{name},{'train' if index < TRAIN else 'validation'}")
    (folder / "photos.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    tiny_pipeline().save_pretrained(folder / "base")
    return Setup(folder)


def synthetic_photo(seed: int) -> Image.Image:
    """Soft colored patches with grain, 60 x 48."""
    random = np.random.default_rng(seed)
    patches = Image.fromarray(random.integers(30, 225, (4, 5, 3), dtype=np.uint8))
    soft = np.asarray(patches.resize((60, 48), Image.Resampling.BICUBIC)).astype(float)
    grainy = soft + random.normal(0, 8, soft.shape)
    return Image.fromarray(grainy.clip(0, 255).astype(np.uint8))
