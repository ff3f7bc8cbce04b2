"""Time and peak memory of the metrics; memory is printed after a quarter, half and all pairs.

    python -m benchmarks.metrics [--pairs 1000] [--side 1024] [--workers 2]

A pair is a result and its truth, plus their gray input: three PNG files, 5 MB. As usual, the truths
are measured too. Memory is the peak sum over all processes; shared pages are counted repeatedly.
"""

from __future__ import annotations

import argparse
import os
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory

import psutil  # type: ignore[import-untyped]
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from colorflux_core.evaluation.benchmark.methods import Method
from colorflux_core.evaluation.benchmark.sets import BenchmarkSet, Item
from colorflux_core.evaluation.metrics.measure import measure
from colorflux_core.photos.color import grayscale

DISTINCT = 8
"""Number of generated images; the others are shifted copies."""


def photo_like(side: int, seed: int) -> Tensor:
    """Generate uint8 (3, side, side) with random shapes, texture at all scales and noise."""
    random = torch.Generator().manual_seed(seed)
    picture = torch.full((1, 3, side, side), 0.5)
    for octave in range(2, 9):
        drawn = torch.randn(1, 3, 2**octave, 2**octave, generator=random)
        drawn[:, 1:] = 0.7 * drawn[:, :1] + 0.3 * drawn[:, 1:]
        mode = "nearest" if octave % 2 else "bicubic"
        picture += 0.2 * 0.6**octave * 4 * F.interpolate(drawn, size=(side, side), mode=mode)
    picture += 0.01 * torch.randn(picture.shape, generator=random)
    return (picture[0].clamp(0, 1) * 255).byte()


def save(path: Path, pixels: Tensor) -> None:
    image = Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy())
    image.save(path, compress_level=1)


def write_pairs(folder: Path, pairs: int, side: int) -> tuple[BenchmarkSet, Method]:
    for name in ("result", "input", "truth"):
        (folder / name).mkdir()
    drawn = [photo_like(side, seed) for seed in range(DISTINCT)]

    def write(pair: int) -> Item:
        name = f"{pair}.png"
        truth = drawn[pair % DISTINCT].roll(37 * pair, dims=-1)
        save(folder / "truth" / name, truth)
        save(folder / "input" / name, grayscale(truth / 255).mul(255).byte())
        save(folder / "result" / name, truth.flip(0))
        return Item(str(pair), folder / "input" / name, folder / "truth" / name)

    with ThreadPoolExecutor() as pool:
        items = tuple(pool.map(write, range(pairs)))
    return BenchmarkSet("synthesized", items), Method("result", folder / "result")


def resident() -> int:
    """Memory of this process and its children, in bytes."""
    me = psutil.Process()
    total = 0
    for process in (me, *me.children(recursive=True)):
        try:
            total += process.memory_info().rss
        except psutil.NoSuchProcess:
            continue
    return total


def watch(cache: Path, stop: threading.Event) -> Iterator[tuple[int, int]]:
    """Record (images measured, bytes) twice a second."""
    done, place = 0, 0
    while not stop.wait(0.5):
        if cache.exists():
            with cache.open("rb") as lines:
                lines.seek(place)
                new = lines.read()
            done, place = done + new.count(b"\n"), place + len(new)
        yield done, resident()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--pairs", type=int, default=1000)
    parser.add_argument("--side", type=int, default=1024, help="of the square pictures, in pixels")
    parser.add_argument("--workers", type=int, default=2, help="processes; 0 uses this one")
    arguments = parser.parse_args()
    with TemporaryDirectory() as temporary:
        folder = Path(temporary)
        started = time.perf_counter()
        benchmark, method = write_pairs(folder, arguments.pairs, arguments.side)
        print(f"{arguments.pairs} pairs written in {time.perf_counter() - started:.0f} s")

        cache, stop = folder / "cache.jsonl", threading.Event()
        with ThreadPoolExecutor(1) as pool:
            watching = pool.submit(lambda: list(watch(cache, stop)))
            started, cpu_before = time.perf_counter(), sum(os.times()[:4])
            try:
                measure([benchmark], [method], cache, workers=arguments.workers)
            finally:
                stop.set()
            seconds = time.perf_counter() - started
            cpu = sum(os.times()[:4]) - cpu_before
            samples = watching.result()
    print(
        f"{seconds:.1f} s, {arguments.pairs / seconds:.2f} pairs a second;"
        f" {cpu:.1f} s of CPU time, {arguments.pairs / cpu:.2f} pairs a second and core"
    )
    for name, share in (("a quarter", 0.25), ("half", 0.5), ("all", 1.0)):
        peak = max(size for done, size in samples if done <= share * 2 * arguments.pairs)
        print(f"peak memory up to {name}: {peak / 2**20:.0f} MiB")


if __name__ == "__main__":
    main()
