"""Small benchmark sets, results and scores for reports, with names that try to break them."""

from __future__ import annotations

import math
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from colorflux_core.evaluation.benchmark.methods import Method
from colorflux_core.evaluation.benchmark.sets import BenchmarkSet, Item
from colorflux_core.evaluation.report.report import write_report
from colorflux_core.evaluation.scores import TRUTH, Column, Score

NASTY = "<script>alert(1)</script>"
NASTY_TOO = "\"'><img src=http://example.invalid/x onerror=alert(2)>|**b**"
SIZES = [(96, 64), (64, 96), (1, 1), (300, 7), (7, 300), (50, 50)]
COLUMNS = [
    Column("richness", "Richness", "higher", "0-100", f"How rich. {NASTY}"),
    Column("error", "Error", "lower"),
    Column("tone", "Tone", "truth"),
    Column("fid", "FID", "lower"),
]


class Run(NamedTuple):
    sets: list[BenchmarkSet]
    methods: list[Method]
    scores: list[Score]

    def write(self, folder: Path, **options: object) -> Path:
        write_report(folder, self.scores, COLUMNS, self.sets, self.methods, **options)  # type: ignore[arg-type]
        return folder


def picture(rng: np.random.Generator, size: tuple[int, int]) -> Image.Image:
    return Image.fromarray(rng.integers(256, size=(size[1], size[0], 3), dtype=np.uint8))


def report_run(
    folder: Path, images: int = 8, names: tuple[str, ...] = ("first", NASTY, NASTY_TOO)
) -> Run:
    """Two sets, one without truth. The second method lacks the second image of each."""
    rng = np.random.default_rng(0)
    sets, methods, scores = [], [], []
    for index, name in enumerate(names):
        methods.append(Method(name, folder / f"method{index}"))
    for set_name, has_truth in (("synthesized", True), ("real & <old>", False)):
        items = []
        for index in range(images):
            name = f"photo {index} <i>" if index == 0 else f"photo{index}"
            size = SIZES[index % len(SIZES)]
            files = [folder / f"{kind} {set_name[:4]} {index}.png" for kind in ("input", "truth")]
            for file in files:
                picture(rng, size).save(file)
            items.append(Item(name, files[0], files[1] if has_truth else None))
            for number, method in enumerate(methods):
                has_result = not (number == 1 and index == 1)
                if has_result:
                    (method.folder / set_name).mkdir(parents=True, exist_ok=True)
                    picture(rng, size if number else (40, 30)).save(
                        method.folder / set_name / f"{name}.png"
                    )
                for column in COLUMNS[:3]:
                    value = float(rng.normal(50 + 5 * number, 9)) if has_result else math.nan
                    scores.append(Score(set_name, method.name, name, column.key, value))
            if has_truth:
                scores.append(Score(set_name, TRUTH, name, "tone", float(rng.normal(50, 9))))
        scores += [Score(set_name, name, "", "fid", float(rng.random())) for name in names]
        sets.append(BenchmarkSet(set_name, tuple(items)))
    return Run(sets, methods, scores)
