"""Compare our pipeline with stock diffusers on one photo: ratios of wall time and peak memory.

    python -m benchmarks.versus_diffusers [--bundle FOLDER] [--photo FILE] [--repetitions N]

Each side runs in its own process and they alternate, so that other load affects both equally.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from colorflux_core.photos.resize import Resizing

# Keep the parent small: a child process inherits its parent's peak memory.
if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

    from colorflux_core.bundles.bundle import Bundle
    from colorflux_core.model.settings import Settings

STOCK_TOKENS = 512
"""Zero tokens that FluxPriorReduxPipeline uses instead of a text prompt."""

OLD_PHOTO = Path(__file__).parent.parent / "docs/photos/old/stdlib_french-alpine-landscape.jpg"

Picture = NDArray[np.float32]
Side = Callable[["Bundle", "Image.Image", "Tensor", int], Callable[[], Picture]]


@dataclass(frozen=True)
class Model:
    """Properties of the model that a process has loaded."""

    text_tokens: int
    size: tuple[int, int]
    steps: int
    threads: int
    imports: int


@dataclass(frozen=True)
class Run:
    """One colorization: the image (H, W, 3) in [0, 1], seconds, and the process's peak MiB."""

    picture: Picture
    seconds: float
    peak: int


def options(settings: Settings, noise: Tensor) -> dict[str, Any]:
    """The arguments of both sides."""
    return {
        "num_inference_steps": settings.steps,
        "guidance_scale": settings.guidance,
        "controlnet_conditioning_scale": settings.control_scale,
        "control_guidance_start": settings.control_start,
        "control_guidance_end": settings.control_end,
        "control_mode": settings.control_mode,
        "latents": noise,
        "output_type": "np",
    }


def ours(
    bundle: Bundle, scan: Image.Image, noise: Tensor, text_tokens: int
) -> Callable[[], Picture]:
    arguments = options(bundle.settings, noise)
    bundle.pipeline.set_progress_bar_config(disable=True)
    return lambda: bundle.pipeline(scan, text_tokens=text_tokens, **arguments).images[0]


def stock(
    bundle: Bundle, scan: Image.Image, noise: Tensor, text_tokens: int
) -> Callable[[], Picture]:
    """Redux and ControlNet pipelines of diffusers, with the bundle's modules."""
    import torch
    from diffusers import FluxControlNetPipeline, FluxPriorReduxPipeline

    model, arguments = bundle.pipeline, options(bundle.settings, noise)
    redux = FluxPriorReduxPipeline(
        image_encoder=model.image_encoder,
        image_embedder=model.image_embedder,
        feature_extractor=model.feature_extractor,
        # Never run, but required so that zeros of other widths than FLUX.1's are accepted.
        text_encoder=model.transformer,
    )
    parts = ("scheduler", "vae", "transformer", "controlnet")
    no_text = ("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2")
    controlled = FluxControlNetPipeline(
        **{name: getattr(model, name) for name in parts}, **dict.fromkeys(no_text)
    )
    controlled.set_progress_bar_config(disable=True)
    config = model.transformer.config
    text = torch.zeros(1, text_tokens, config.joint_attention_dim)
    pooled = torch.zeros(1, config.pooled_projection_dim)
    encode = model.vae.encode

    def encode_without_noise(pixels: Tensor) -> object:
        """Return the mode, like ours, where stock samples the condition; the work is the same."""
        posterior = encode(pixels)
        posterior.latent_dist.std.zero_()
        return posterior

    model.vae.encode = encode_without_noise

    def colorize() -> Picture:
        prompt = redux(scan, prompt_embeds=text.clone(), pooled_prompt_embeds=pooled.clone())
        return controlled(
            **prompt, control_image=scan, height=scan.height, width=scan.width, **arguments
        ).images[0]

    return colorize


def serve(
    connection: Connection, side: Side, bundle: str, photo: Path, text_tokens: int | None
) -> None:
    """Child process: load the model, then colorize once per message until it receives None."""
    import diffusers
    import torch
    import transformers
    from PIL import Image

    warnings.simplefilter("ignore")
    for library in (diffusers, transformers):
        library.utils.logging.set_verbosity_error()
        library.utils.logging.disable_progress_bar()

    from colorflux_core.bundles.bundle import load_bundle
    from colorflux_core.photos.color import grayscale
    from colorflux_core.photos.photo import load_photo

    imports = peak_memory()
    loaded = load_bundle(bundle)
    tokens = loaded.settings.text_tokens if text_tokens is None else text_tokens
    pixels = load_photo(photo).pixels
    resizing = Resizing.onto(loaded.settings.canvas, (pixels.shape[1], pixels.shape[2]))
    gray = (grayscale(resizing.to_canvas(pixels)) * 255).round().byte()
    scan = Image.fromarray(gray.permute(1, 2, 0).numpy())
    noise = torch.randn(
        1, scan.height * scan.width // 256, 64, generator=torch.Generator().manual_seed(0)
    )
    colorize = side(loaded, scan, noise, tokens)
    connection.send(
        Model(tokens, scan.size, loaded.settings.steps, torch.get_num_threads(), imports)
    )
    while connection.recv() is not None:
        started = time.perf_counter()
        picture = colorize()
        seconds = time.perf_counter() - started
        connection.send(Run(picture, seconds, peak_memory()))


def peak_memory() -> int:
    """Peak memory of this process so far, in MiB."""
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // unit


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--bundle", default="nano")
    parser.add_argument("--photo", type=Path, default=OLD_PHOTO)
    parser.add_argument("--repetitions", type=int, default=5)
    args = parser.parse_args()

    context = multiprocessing.get_context("spawn")
    lines: list[tuple[str, Side, int | None]] = [
        ("stock diffusers", stock, STOCK_TOKENS),
        ("ColorFLUX, the same work", ours, STOCK_TOKENS),
        ("ColorFLUX, the bundle's way", ours, None),
    ]
    connections, processes = [], []
    for _, side, tokens in lines:
        connection, theirs = context.Pipe()
        inputs = (theirs, side, args.bundle, args.photo, tokens)
        process = context.Process(target=serve, args=inputs, daemon=True)
        process.start()
        theirs.close()
        connections.append(connection)
        processes.append(process)
    models: list[Model] = [connection.recv() for connection in connections]

    def take_turns() -> list[Run]:
        runs = []
        for connection in connections:
            connection.send("colorize")
            runs.append(connection.recv())
        return runs

    take_turns()  # warm-up
    rounds = [take_turns() for _ in range(args.repetitions)]
    for connection, process in zip(connections, processes, strict=True):
        connection.send(None)
        process.join()

    model = models[0]
    print(
        f"{args.bundle}: {model.size[0]}x{model.size[1]}, {model.steps} steps, "
        f"{model.threads} threads, median of {args.repetitions}"
    )
    print(f"{'':28}{'tokens':>7}{'seconds':>9}{'ratio':>7}{'MiB':>7}{'ratio':>7}{'work MiB':>10}")
    for i, (name, _, _) in enumerate(lines):
        seconds = statistics.median(runs[i].seconds for runs in rounds)
        ratio = statistics.median(runs[i].seconds / runs[0].seconds for runs in rounds)
        peak, peak_of_stock = rounds[-1][i].peak, rounds[-1][0].peak
        print(
            f"{name:28}{models[i].text_tokens:>7}{seconds:>9.2f}{ratio:>7.2f}"
            f"{peak:>7}{peak / peak_of_stock:>7.2f}{peak - models[i].imports:>10}"
        )
    difference = np.abs(rounds[-1][1].picture - rounds[-1][0].picture).max()
    print(f"maximum difference of the images, in [0, 1], for the same work: {difference:.1e}")


if __name__ == "__main__":
    main()
