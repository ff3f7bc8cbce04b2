"""Evaluate a bundle on held-out photos; prints the tables of nano's model card.

    python -m benchmarks.heldout --photos FOLDER --manifest models/nano/photos.csv [--bundle DIR]

1. Gray inputs: chroma error against the true photo, colorfulness and blotches, compared with the
   gray photo, the training photos' mean chroma, and a regression head on the same features.
2. Faded inputs (the paper's augmentation, section 4.2.1), with and without the Pro-DPO LoRA.
3. Implicit accuracy of the Pro-DPO LoRA on held-out preference pairs.
"""

from __future__ import annotations

import argparse
import random
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from colorflux_core.bundles.bundle import LORA, Bundle, load_bundle
from colorflux_core.bundles.bundle_config import find_bundle
from colorflux_core.loading import load
from colorflux_core.model.colorization import colorize
from colorflux_core.model.visual_prompt import image_tokens
from colorflux_core.photos.color import (
    colorfulness,
    grayscale,
    luminance,
    merge_luminance,
    rgb_to_ycbcr,
    sample_fading,
    unit_range,
    ycbcr_to_rgb,
)
from training.data.manifest import ManifestPhoto, read_manifest
from training.data.order import SampleIndex, generator
from training.data.pictures import pixels, views
from training.models.parts import Parts
from training.pro_dpo import ProDpoConfig, ProDpoStage, preference_rows

SIDE = 256
FLAT = 0.02


def chroma(rgb: Tensor) -> Tensor:
    return rgb_to_ycbcr(rgb)[..., 1:, :, :]


def psnr(error: Tensor) -> float:
    return -10 * error.square().mean().log10().item()


def gradient(planes: Tensor) -> Tensor:
    """Gradient magnitude over all planes, (N, C, H, W) to (N, 1, H - 1, W - 1)."""
    right = planes[..., :-1, 1:] - planes[..., :-1, :-1]
    below = planes[..., 1:, :-1] - planes[..., :-1, :-1]
    return (right.square() + below.square()).sum(1, keepdim=True).sqrt()


def blotches(rgb: Tensor, true: Tensor) -> float:
    """Mean chroma gradient where the true luma has no edge, relative to the true photos' own."""
    flat = gradient(luminance(true)) < FLAT
    return (gradient(chroma(rgb))[flat].mean() / gradient(chroma(true))[flat].mean()).item()


def correlation(one: Tensor, other: Tensor) -> float:
    return torch.corrcoef(torch.stack([one.flatten(), other.flatten()]))[0, 1].item()


def table(rows: dict[str, Tensor], true: Tensor) -> None:
    print(
        f"{'':26}{'chroma PSNR':>12}{'over gray':>11}{'correlation':>12}{'colorfulness':>13}",
        end="",
    )
    print(f"{'blotches':>10}")
    gray_error = psnr(chroma(true))
    for name, rgb in rows.items():
        error = psnr(chroma(rgb) - chroma(true))
        related = correlation(chroma(rgb), chroma(true)) if chroma(rgb).std() > 1e-4 else 0.0
        colorful = (colorfulness(rgb).mean() / colorfulness(true).mean()).item()
        print(
            f"{name:26}{error:10.2f} dB{error - gray_error:+10.2f} dB{related:13.2f}"
            f"{100 * colorful:11.0f} %{blotches(rgb, true):12.2f}x"
        )


def colorized(bundle: Bundle, photos: Tensor, lora_scale: float) -> Tensor:
    """Colorize photos (N, 3, H, W) through the full pipeline, to the canvas and back."""
    settings = replace(bundle.settings, lora_scale=lora_scale)
    return torch.stack(
        [colorize(bundle.pipeline, photo, settings) for photo in tqdm(photos, leave=False)]
    )


class RegressionHead(nn.Module):
    """Regression from image tokens (N, T, D) to the mean chroma per 8 x 8 pixels (N, 2, h, w)."""

    def __init__(self, width: int, fine: int) -> None:
        super().__init__()
        self.fine = fine
        self.layers = nn.Sequential(
            nn.Dropout(0.3), nn.Linear(width, 512), nn.SiLU(), nn.Dropout(0.3)
        ).append(nn.Linear(512, 2 * fine**2))

    def forward(self, tokens: Tensor) -> Tensor:
        grid = int(tokens.shape[1] ** 0.5)
        cells = self.layers(tokens).view(-1, grid, grid, 2, self.fine, self.fine)
        return cells.permute(0, 3, 1, 4, 2, 5).flatten(4, 5).flatten(2, 3)


def train_regression(tokens: Tensor, true: Tensor, steps: int = 600) -> RegressionHead:
    torch.manual_seed(0)
    target = F.avg_pool2d(chroma(true), 8)
    head = RegressionHead(tokens.shape[2], target.shape[-1] // int(tokens.shape[1] ** 0.5))
    optimizer = torch.optim.AdamW(head.parameters(), 5e-4, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in tqdm(range(steps), desc="regression head", leave=False):
        rows = torch.randint(len(tokens), (64,))
        loss = F.mse_loss(head(tokens[rows]), target[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return head.eval()


def with_chroma(planes: Tensor, gray: Tensor) -> Tensor:
    """Color gray photos (N, 3, H, W) with coarse chroma planes (N, 2, h, w)."""
    y = luminance(gray)
    smooth = F.interpolate(planes, size=gray.shape[-2:], mode="bilinear")
    return merge_luminance(ycbcr_to_rgb(torch.cat([y, smooth], dim=1)), y)


def stack(photos: list[ManifestPhoto], per_photo: int = 1) -> Tensor:
    return unit_range(pixels(views(photos, SIDE, per_photo, seed=0)))


def faded(photos: list[ManifestPhoto], low: float, high: float) -> Tensor:
    """Fade each photo with its own factors, seeded by its name."""
    pictures = [
        replace(whole, fading=sample_fading(random.Random(whole.photo.file.name), low, high))
        for whole in views(photos, SIDE, 1, seed=0)
    ]
    return unit_range(pixels(pictures))


def on_gray_inputs(
    bundle: Bundle, train: list[ManifestPhoto], held_out: list[ManifestPhoto]
) -> None:
    true = stack(held_out)
    gray = grayscale(true)
    pipeline, views_of_train = bundle.pipeline, stack(train, 3)

    @torch.no_grad()
    def tokens(rgb: Tensor) -> Tensor:
        encode = (pipeline.image_encoder, pipeline.feature_extractor)
        chunks = tqdm(grayscale(rgb).split(16), desc="image tokens", leave=False)
        return torch.cat([image_tokens(*encode, chunk) for chunk in chunks])

    head = train_regression(tokens(views_of_train), views_of_train)
    mean = chroma(views_of_train).mean(dim=(0, 2, 3), keepdim=True)
    with torch.no_grad():
        regressed = head(tokens(true))
    rows = {
        "gray": gray,
        "mean chroma of training": with_chroma(mean.expand(len(gray), -1, 8, 8), gray),
        "regression head": with_chroma(regressed, gray),
        "ColorFLUX without LoRA": colorized(bundle, gray, 0.0),
        "ColorFLUX": colorized(bundle, gray, 1.0),
        "(true)": true,
    }
    print(f"\nGray inputs, {len(gray)} photos at {SIDE} x {SIDE}\n")
    table(rows, true)


def on_faded_inputs(bundle: Bundle, held_out: list[ManifestPhoto]) -> None:
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


def on_pairs(bundle: Bundle, folder: Path, held_out: list[ManifestPhoto], draws: int = 4) -> None:
    """Print how often the LoRA prefers a photo to its faded version (the margin of Eq. 4)."""
    print("\nHeld-out preference pairs\n")
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
            places = [
                SampleIndex(position % len(rows), position) for position in range(draws * len(rows))
            ]
            for batch in load(rows, workers=0, sampler=places, batch_size=16):
                drawn = stage.prepare_batch(
                    batch, [generator(0, position) for position in batch["position"].tolist()]
                )
                with torch.no_grad():
                    logit = stage.loss(drawn)[1]["logit"]
                accuracy += (logit > 0).tolist()
        print(f"implicit accuracy, fading {low}-{high}: {sum(accuracy) / len(accuracy):.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--photos", type=Path, required=True, help="folder of the photos")
    parser.add_argument("--manifest", type=Path, default=Path("models/nano/photos.csv"))
    parser.add_argument("--split", default="test", help="the manifest's held-out split")
    parser.add_argument("--bundle", default="nano", help="bundle folder or name")
    arguments = parser.parse_args()
    bundle = load_bundle(arguments.bundle)
    bundle.pipeline.set_progress_bar_config(disable=True)
    held_out = read_manifest(arguments.manifest, arguments.photos, arguments.split)
    train = read_manifest(arguments.manifest, arguments.photos, "train")
    on_gray_inputs(bundle, train, held_out)
    on_faded_inputs(bundle, held_out)
    on_pairs(bundle, find_bundle(arguments.bundle), held_out)


if __name__ == "__main__":
    main()
