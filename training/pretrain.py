"""``python -m training.pretrain vision|vae|flux``: nano's stand-ins for published weights.

FLUX.1-dev, its VAE, SigLIP and FLUX.1-Redux-dev come ready-made to whoever trains the big model and
start at ``training.structure``. Nano has to make its own, one after the other, into one folder.
"""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass

from colorflux_core.color import unit_range
from colorflux_core.visual_prompt import preprocess

from .config import LoopConfig, parse, run, setting
from .data import Pixels, load
from .loop import start, train
from .parts import pictures
from .pretrain_flux import FluxConfig, FluxStage, flux_training
from .pretrain_vae import VaeConfig, vae_training
from .vision import convert, image_processor, published_weights, standardize

STANDARDIZED = 1024
"""Photos that the tower's features are standardized over, at most."""


@dataclass
class VisionConfig(LoopConfig):
    image_size: int = setting(
        256, "side in pixels that the vision tower sees; 32 for each token", low=32
    )


def make_vision(config: VisionConfig) -> None:
    """Convert the published tower, and standardize its features over some of the photos."""
    tower = convert(published_weights(), config.image_size)
    processor = image_processor(config.image_size)
    whole = [picture for picture in pictures(config, "vision") if picture.view == 0]
    whole = whole[:: math.ceil(len(whole) / STANDARDIZED)]
    batches = load(Pixels(whole), config.workers, batch_size=16)
    standardize(tower, (preprocess(processor, unit_range(batch)) for _, batch in batches))
    tower.save_pretrained(config.output / "image_encoder")
    processor.save_pretrained(config.output / "feature_extractor")


def main(argv: list[str]) -> None:
    part, flags = (argv[0] if argv else ""), argv[1:]
    prog = f"training.pretrain {part}"
    if part == "vision":
        make_vision(parse(VisionConfig, flags, prog))
    elif part == "vae":
        config = parse(VaeConfig, flags, prog)
        train(vae_training(config), config)
    elif part == "flux":
        start(parse(FluxConfig, flags, prog), FluxStage, flux_training)
    else:
        sys.exit(f"{__doc__}\nSay which part: vision, vae or flux; each has its own --help.")


if __name__ == "__main__":
    run(main)
