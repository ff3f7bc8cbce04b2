"""Does a bundle colorize photos that it has not seen? Prints the tables of nano's model card.

    python -m benchmarks.heldout --photos FOLDER --manifest models/nano/photos.csv [--bundle DIR]

1. Gray inputs: colors beside the true photo's, of photos with people and of others; beside them the
   gray photo itself and a regression head on the same features and photos (``--regression``).
2. Faded inputs (the paper's augmentation, 4.2.1): with the Pro-DPO LoRA against without it.
"""

from __future__ import annotations

import argparse
import random
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor
from tqdm import tqdm

from benchmarks.chroma import scores, skin
from benchmarks.regression import load_head, with_chroma
from colorflux_core.bundle import LORA, Bundle, load_bundle
from colorflux_core.bundle_config import find_bundle
from colorflux_core.color import (
    colorfulness,
    grayscale,
    luminance,
    sample_fading,
    unit_range,
)
from colorflux_core.colorization import colorize
from colorflux_core.visual_prompt import image_tokens
from training.data import Photo, load, manifest_rows, pixels, read_manifest, views
from training.order import Place, generator
from training.parts import Parts
from training.pro_dpo import ProDpoConfig, ProDpoStage, preference_rows

SIDE = 256
PEOPLE, OTHERS = "people", "others"


def table(rows: dict[str, Tensor], true: Tensor, own_seeds: dict[str, Tensor]) -> None:
    """``own_seeds``: the rows that have a seed, once more with another for each photo."""
    columns = "over gray, dB", "+-", "correlation", "colorfulness", "blotches", "seed map"
    print(f"{'':26}" + "".join(f"{column:>14}" for column in columns))
    for name, rgb in rows.items():
        s = scores(rgb, true, own_seeds.get(name))
        print(
            f"{name:26}{s.over_gray:+14.2f}{s.interval:14.2f}{s.correlation:14.2f}"
            f"{100 * s.colorfulness:12.0f} %{s.blotches:14.2f}{s.seed:14.2f}"
        )


def skin_table(rows: dict[str, Tensor], true: Tensor) -> None:
    print("\nMean hue of skin within 15 degrees of the truth\n")
    for name, rgb in rows.items():
        s = skin(rgb, true)
        print(
            f"{name:26}light {100 * s.light:3.0f} % of {s.light_photos},"
            f" dark {100 * s.dark:3.0f} % of {s.dark_photos}"
        )


def colorized(bundle: Bundle, photos: Tensor, lora_scale: float, own_seeds: bool = False) -> Tensor:
    """Each photo (3, H, W) through the whole path, to the canvas and back."""
    settings = replace(bundle.settings, lora_scale=lora_scale)
    return torch.stack(
        [
            colorize(bundle.pipeline, photo, replace(settings, seed=index * own_seeds))
            for index, photo in enumerate(tqdm(photos, leave=False))
        ]
    )


def stack(photos: list[Photo], per_photo: int = 1) -> Tensor:
    return unit_range(pixels(views(photos, SIDE, per_photo, seed=0)))


def faded(photos: list[Photo], low: float, high: float) -> Tensor:
    """Each whole photo with a fading of its own, seeded by its name."""
    pictures = [
        replace(whole, fading=sample_fading(random.Random(whole.photo.file.name), low, high))
        for whole in views(photos, SIDE, 1, seed=0)
    ]
    return unit_range(pixels(pictures))


def on_gray_inputs(bundle: Bundle, groups: dict[str, list[Photo]], regression: Path | None) -> None:
    for group, photos in groups.items():
        true = stack(photos)
        gray = grayscale(true)
        rows = {"gray": gray}
        if regression is not None:
            rows["regression head"] = regressed(bundle, gray, regression)
        scales = {"ColorFLUX without LoRA": 0.0} | ({"ColorFLUX": 1.0} if has_lora(bundle) else {})
        rows |= {name: colorized(bundle, gray, scale) for name, scale in scales.items()}
        own_seeds = {
            name: colorized(bundle, gray, scale, own_seeds=True) for name, scale in scales.items()
        }
        print(f"\nGray inputs, {len(gray)} photos at {SIDE} x {SIDE}: {group}\n")
        table(rows, true, own_seeds)
        if group == PEOPLE:
            skin_table(rows, true)


@torch.no_grad()
def regressed(bundle: Bundle, gray: Tensor, folder: Path) -> Tensor:
    encode = (bundle.pipeline.image_encoder, bundle.pipeline.feature_extractor)
    tokens = torch.cat([image_tokens(*encode, chunk) for chunk in gray.split(16)])
    return with_chroma(load_head(folder, *tokens.shape[1:])(tokens), gray)


def has_lora(bundle: Bundle) -> bool:
    return bool(getattr(bundle.pipeline.transformer, "peft_config", None))


def on_faded_inputs(bundle: Bundle, held_out: list[Photo]) -> None:
    true = stack(held_out)
    print(f"\nFaded inputs, {len(true)} photos: mean distance to the true photo's\n")
    print(f"{'':34}{'colorfulness':>13}{'contrast':>10}{'brightness':>12}")
    for low, high in ((0.5, 0.8), (0.75, 0.95)):
        gray = grayscale(faded(held_out, low, high))
        for name, rgb in {
            "faded gray": gray,
            "ColorFLUX without LoRA": colorized(bundle, gray, 0.0),
            "ColorFLUX": colorized(bundle, gray, 1.0),
        }.items():
            colorful = (colorfulness(rgb) - colorfulness(true)).abs().mean().item()
            contrast, brightness = (
                (of(luminance(rgb), dim=(1, 2, 3)) - of(luminance(true), dim=(1, 2, 3)))
                .abs()
                .mean()
                .item()
                for of in (torch.std, torch.mean)
            )
            label = f"{name}, fading {low}-{high}"
            print(f"{label:40}{colorful:7.2f}{contrast:10.4f}{brightness:12.4f}")


def on_pairs(bundle: Bundle, folder: Path, held_out: list[Photo], draws: int = 4) -> None:
    """Does the LoRA prefer the photo to its faded self, beside the reference? Eq. 4's margin."""
    print("\nPreference pairs that training never saw\n")
    for low, high in ((0.5, 0.8), (0.75, 0.95)):
        accuracy = []
        with TemporaryDirectory() as cache:
            config = ProDpoConfig(
                base=folder,
                initial_lora=folder / LORA,
                canvas=SIDE,
                text_tokens=bundle.settings.text_tokens,
                guidance=bundle.settings.guidance,
                fading_low=low,
                fading_high=high,
                pairs=1,
                precision="no",
                frozen="float32",
                cache=Path(cache),
            )
            parts = Parts(config)
            rows = preference_rows(views(held_out, SIDE, 1, seed=0), config, parts)
            stage = ProDpoStage(config, parts)
            places = [Place(place % len(rows), place) for place in range(draws * len(rows))]
            for batch in load(rows, workers=0, sampler=places, batch_size=16):
                drawn = stage.draw(
                    batch, [generator(0, place) for place in batch["place"].tolist()]
                )
                with torch.no_grad():
                    logit = stage.loss(drawn)[1]["logit"]
                accuracy += (logit > 0).tolist()
        print(f"implicit accuracy, fading {low}-{high}: {sum(accuracy) / len(accuracy):.2f}")


def groups_of(manifest: Path, photos: list[Photo], folder: Path) -> dict[str, list[Photo]]:
    """With people and others, where the manifest's column ``people`` tells them apart."""
    people = {folder / row["file"] for row in manifest_rows(manifest) if row.get("people") == "yes"}
    groups = {
        PEOPLE: [photo for photo in photos if photo.file in people],
        OTHERS: [photo for photo in photos if photo.file not in people],
    }
    return {group: members for group, members in groups.items() if members}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--photos", type=Path, required=True, help="folder of the photos")
    parser.add_argument("--manifest", type=Path, default=Path("models/nano/photos.csv"))
    parser.add_argument("--split", default="test", help="the manifest's held-out split")
    parser.add_argument("--bundle", default="nano", help="bundle folder or name")
    parser.add_argument("--regression", type=Path, help="folder of benchmarks.regression's head")
    parser.add_argument("--every", type=int, default=1, help="take every so many photos")
    parser.add_argument("--gray-only", action="store_true", help="leave out the faded inputs")
    arguments = parser.parse_args()
    bundle = load_bundle(arguments.bundle)
    bundle.pipeline.set_progress_bar_config(disable=True)
    held_out = read_manifest(arguments.manifest, arguments.photos, arguments.split)
    held_out = held_out[:: arguments.every]
    groups = groups_of(arguments.manifest, held_out, arguments.photos)
    on_gray_inputs(bundle, groups, arguments.regression)
    if has_lora(bundle) and not arguments.gray_only:
        on_faded_inputs(bundle, held_out)
        on_pairs(bundle, find_bundle(arguments.bundle), held_out)


if __name__ == "__main__":
    main()
