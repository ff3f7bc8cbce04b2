"""Compare S3Diff with its published implementation, then run large scans: time and peak memory.

    python -m benchmarks.s3diff [--full] [--dtype NAME] [--size N] [--repetitions N]
                                [--megapixels N ...] [--tile N]

The weights are random: of SD-Turbo's size with --full, otherwise the tiny ones of the tests.
"""

from __future__ import annotations

import argparse
import functools
import multiprocessing
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

from benchmarks.versus_diffusers import peak_memory

# Keep the parent small: a child process inherits its parent's peak memory.
if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    from colorflux_core.s3diff.model import S3Diff
    from colorflux_core.s3diff.modulated_lora import ModulatedLora

SEED, GUIDANCE = 0, 1.07
ONE_TILE, SMALL_TILE = 4096, 256

Side = Callable[["S3Diff", "Tensor"], "Tensor"]


@dataclass(frozen=True)
class Run:
    """One restoration.

    Attributes:
        picture: (1, 3, H, W) in [0, 1].
        seconds: Time of the restoration.
        peak: Peak memory of the process so far, in MiB.
        idle: Peak memory with the model loaded, before the scan, in MiB.
    """

    picture: NDArray[np.float32]
    seconds: float
    peak: int
    idle: int

    @property
    def beside(self) -> float:
        """Memory beyond the scan and the result in MiB, for a fresh process."""
        scan, result = self.picture.size, self.picture.nbytes
        return self.peak - self.idle - (scan + result) / 2**20


@functools.cache
def random_model(full: bool, dtype: str) -> S3Diff:
    """S3Diff with random weights, cached per process."""
    import diffusers
    import torch
    from diffusers import AutoencoderKL, UNet2DConditionModel

    from colorflux_core.s3diff.degradation import DegradationEstimator
    from colorflux_core.s3diff.model import S3Diff
    from colorflux_core.s3diff.sd_turbo import UNET, VAE
    from tests.s3diff import models as tiny

    diffusers.utils.logging.set_verbosity_error()
    torch.manual_seed(0)
    if full:
        networks = UNet2DConditionModel(**UNET), AutoencoderKL(**VAE)
        model = S3Diff(*networks, torch.randn(2, 77, 1024))
    else:
        prompts = torch.randn(2, 77, 24)
        model = S3Diff(*tiny.tiny_networks(), prompts, tiny.RANK_UNET, tiny.RANK_VAE)
        model.de_net = DegradationEstimator(width=8)
    model.frequencies.normal_()
    model.unet.to(getattr(torch, dtype))
    model.vae.to(getattr(torch, dtype))
    return model.eval().requires_grad_(False)


def finished(model: S3Diff, scan: Tensor, tile: int) -> Tensor:
    """Our full restoration, as before a colorization."""
    from colorflux_core.s3diff.options import Restoration
    from colorflux_core.s3diff.restorer import restore

    return restore(model, scan, Restoration(tile=tile, gray=True))


def ours(model: S3Diff, scan: Tensor, tile: int = ONE_TILE) -> Tensor:
    """Our restoration without the color fix."""
    from colorflux_core.s3diff.options import Restoration
    from colorflux_core.s3diff.restorer import restore

    return restore(model, scan, Restoration(tile=tile, seed=SEED, color_fix="none"))


def published(model: S3Diff, scan: Tensor) -> Tensor:
    """The published implementation: B(M(A x)) in replaced forwards, one prompt after the other,
    and without tiles, as it processes images of up to 768 pixels."""
    import torch

    from colorflux_core.s3diff.model import ALPHA_BAR, TIMESTEP
    from colorflux_core.s3diff.modulated_lora import ModulatedLora, unet_stage, vae_stage
    from colorflux_core.s3diff.modulation import fourier_features

    rgb = scan / 255
    fourier = fourier_features(model.de_net(rgb, ONE_TILE), model.frequencies)
    for network, modulator, stage in (
        (model.unet, model.unet_modulator, unet_stage),
        (model.vae, model.vae_modulator, vae_stage),
    ):
        matrices = modulator(fourier).to(network.dtype)
        for name, layer in network.named_modules():
            if isinstance(layer, ModulatedLora):
                forward = functools.partial(published_forward, layer, matrices[:, stage(name)])
                layer.forward = forward  # type: ignore[method-assign]
    factor = model.vae.config.scaling_factor
    posterior = model.vae.encode((2 * rgb - 1).to(model.vae.dtype)).latent_dist
    noise = torch.randn(posterior.mean.shape, generator=torch.Generator().manual_seed(SEED))
    z = factor * (posterior.mean.float() + posterior.std.float() * noise)
    positive, negative = (
        model.unet(z.to(model.unet.dtype), TIMESTEP, prompt[None]).sample.float()
        for prompt in model.prompts.to(model.unet.dtype)
    )
    prediction = negative + GUIDANCE * (positive - negative)
    clean = (z - (1 - ALPHA_BAR) ** 0.5 * prediction) / ALPHA_BAR**0.5
    picture = model.vae.decode((clean / factor).to(model.vae.dtype)).sample
    return picture.float().clamp(-1, 1) * 0.5 + 0.5


def published_forward(layer: ModulatedLora, matrix: Tensor, x: Tensor, *_: object) -> Tensor:
    import torch

    axes = "...khw,...kr->...rhw" if x.ndim == 4 else "...lk,...kr->...lr"
    mixed = torch.einsum(axes, layer.lora_A(x), matrix)
    return layer.base_layer(x) + layer.lora_B(mixed) * layer.scale


def run(side: Side, make_model: Callable[[], S3Diff], height: int, width: int) -> Run:
    """Restore a random scan of this size."""
    import torch

    model = make_model()
    idle = peak_memory()
    generator = torch.Generator().manual_seed(1)
    scan = torch.randint(256, (1, 3, height, width), dtype=torch.uint8, generator=generator)
    started = time.perf_counter()
    with torch.no_grad():
        picture = side(model, scan).numpy()
    return Run(picture, time.perf_counter() - started, peak_memory(), idle)


def process() -> ProcessPoolExecutor:
    """A single fresh process."""
    return ProcessPoolExecutor(1, multiprocessing.get_context("spawn"))


def run_alone(side: Side, make_model: Callable[[], S3Diff], height: int, width: int) -> Run:
    """Call :func:`run` in its own process."""
    with process() as fresh:
        return fresh.submit(run, side, make_model, height, width).result()


def compare(make_model: Callable[[], S3Diff], size: int, repetitions: int) -> None:
    """Run and print all sides; they alternate, so that other load affects all equally."""
    sides: dict[str, Side] = {
        "published": published,
        "ours": ours,
        f"ours, tiles of {SMALL_TILE}": functools.partial(ours, tile=SMALL_TILE),
    }
    processes = [process() for _ in sides]

    def take_turns() -> list[Run]:
        return [
            one.submit(run, side, make_model, size, size).result()
            for one, side in zip(processes, sides.values(), strict=True)
        ]

    first = take_turns()  # warm-up
    rounds = [take_turns() for _ in range(repetitions)]
    for one in processes:
        one.shutdown()
    print(f"{size}x{size}, median of {repetitions}")
    print(f"{'':22}{'seconds':>9}{'ratio':>7}{'work MiB':>10}{'ratio':>7}{'difference':>12}")
    for i, name in enumerate(sides):
        seconds = statistics.median(runs[i].seconds for runs in rounds)
        ratio = statistics.median(runs[i].seconds / runs[0].seconds for runs in rounds)
        works = [rounds[-1][side].peak - first[side].idle for side in (i, 0)]
        difference = abs(first[i].picture - first[0].picture).max()
        print(
            f"{name:22}{seconds:>9.2f}{ratio:>7.2f}"
            f"{works[0]:>10}{works[0] / works[1]:>7.2f}{difference:>12.1e}"
        )


def measure_scans(make_model: Callable[[], S3Diff], megapixels: list[float], tile: int) -> None:
    """Print time and memory of large 3:2 scans, each in its own process."""
    print(f"\nscans in tiles of {tile}")
    print(f"{'megapixels':>10}{'seconds':>9}{'s/megapixel':>13}{'MiB beyond scan and result':>28}")
    for millions in megapixels:
        height = round((millions * 1e6 / 1.5) ** 0.5)
        side = functools.partial(finished, tile=tile)
        one = run_alone(side, make_model, height, height * 3 // 2)
        print(
            f"{millions:>10g}{one.seconds:>9.1f}{one.seconds / millions:>13.2f}{one.beside:>28.0f}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--full", action="store_true", help="as many weights as SD-Turbo has")
    parser.add_argument("--dtype", default="float32", help="of SD-Turbo and the LoRA (float32)")
    parser.add_argument("--size", type=int, default=512, help="side of the picture (512)")
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument(
        "--megapixels", type=float, nargs="*", default=[3, 12, 24], help="of the scans (3 12 24)"
    )
    parser.add_argument("--tile", type=int, default=768, help="of the scans' tiles (768)")
    args = parser.parse_args()
    make_model = functools.partial(random_model, args.full, args.dtype)
    compare(make_model, args.size, args.repetitions)
    if args.megapixels:
        measure_scans(make_model, args.megapixels, args.tile)


if __name__ == "__main__":
    main()
