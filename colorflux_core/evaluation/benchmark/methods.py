"""What is compared: folders of results, matched to a benchmark's images by file name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ...errors import ColorFluxError
from ...photos.photo import is_photo_file
from .sets import BenchmarkSet


@dataclass(frozen=True)
class Method:
    """A name in the report, and the folder of results.

    The folder holds a folder for each benchmark set, by the set's name; results for a single set
    may lie in it directly.
    """

    name: str
    folder: Path

    def results(self, benchmark: BenchmarkSet) -> dict[str, Path]:
        """By the image's name, the result for each image of the set that there is one for.

        Raises ColorFluxError when two files could be the result for one image.
        """
        own = self.folder / benchmark.name
        wanted = {item.name for item in benchmark.items}
        found: dict[str, Path] = {}
        for path in sorted((own if own.is_dir() else self.folder).iterdir()):
            if path.stem not in wanted or not is_photo_file(path):
                continue
            if path.stem in found:
                raise ColorFluxError(
                    f"{found[path.stem]} and {path} could both be {self.name}'s result for"
                    f" {path.stem}: remove one"
                )
            found[path.stem] = path
        return found


def require_clear_sets(method: Method, sets: Sequence[BenchmarkSet]) -> None:
    """Raises ColorFluxError when there is no result at all, or it is not clear for which set."""
    if not method.folder.is_dir():
        raise ColorFluxError(f"{method.name}: {method.folder} is no folder of results")
    if not any(method.results(benchmark) for benchmark in sets):
        raise ColorFluxError(
            f"{method.name}: no file in {method.folder} has the name of an image of the benchmark"
        )
    flat = [set for set in sets if not (method.folder / set.name).is_dir()]
    names = [item.name for set in flat for item in set.items]
    if len(flat) > 1 and any(method.results(set) for set in flat) and len({*names}) < len(names):
        folders = " and ".join(set.name for set in flat)
        raise ColorFluxError(
            f"{method.name}: for which set are the results in {method.folder}? Put them into its"
            f" folders {folders}, or choose one with --set"
        )
