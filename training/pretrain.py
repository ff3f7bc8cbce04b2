"""Pretrain nano's stand-ins for published weights: a vision tower, a VAE, and FLUX with Redux.

Training at full size uses the published FLUX.1-dev, VAE, SigLIP and FLUX.1-Redux-dev, and starts
with training.structure. Nano needs its own, made one after the other in one folder:

  python -m training.pretrain vision --recipe training/recipes/nano.toml --photos PHOTOS
  python -m training.pretrain vae --recipe training/recipes/nano.toml --photos PHOTOS
  python -m training.pretrain flux --recipe training/recipes/nano.toml --photos PHOTOS
"""

from __future__ import annotations

from dataclasses import dataclass

from colorflux_core.errors import ColorFluxError
from colorflux_core.loading import load
from colorflux_core.model.visual_prompt import preprocess
from colorflux_core.options import setting
from colorflux_core.photos.color import unit_range

from .config import MODEL, LoopConfig, parse
from .data.pictures import training_pictures
from .data.rows import Pixels
from .launch import plan_or_train, run_command
from .nano.flux import FluxConfig, FluxStage, flux_training
from .nano.vae import VaeConfig, vae_training
from .nano.vision import convert, image_processor, published_weights, standardize
from .run.loop import train


@dataclass
class VisionConfig(LoopConfig):
    image_size: int = setting(
        256, "input side in pixels of the vision tower; 32 per token", low=32, group=MODEL
    )


def make_vision(config: VisionConfig) -> None:
    """Convert the published vision tower and standardize its features over the training photos."""
    tower = convert(published_weights(), config.image_size)
    processor = image_processor(config.image_size)
    full_photos = [photo for photo in training_pictures(config, "vision") if photo.view == 0]
    batches = load(Pixels(full_photos), config.workers, batch_size=16)
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
        plan_or_train(parse(FluxConfig, flags, prog), FluxStage, flux_training)
    elif part in ("-h", "--help"):
        print(f"{__doc__}\nEach of vision, vae and flux has its own --help.")
    else:
        raise ColorFluxError("name the part to pretrain first: vision, vae or flux")


if __name__ == "__main__":
    run_command(main)
