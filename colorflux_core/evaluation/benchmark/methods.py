"""The methods to compare: folders of results, matched to a benchmark's images by file name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ...errors import ColorFluxError
from ...photos.photo import is_photo_file
from .sets import BenchmarkSet


@dataclass(frozen=True)
class Method:
    """A method's name in the report and its folder of results.

    The folder has a subfolder for each benchmark set, named like the set. Results for a single set
    may also be directly in the folder.
    """

    name: str
    folder: Path

    def results(self, benchmark: BenchmarkSet) -> dict[str, Path]:
        """Map the set's image names to result files; images without a result are absent.

        Raises:
            ColorFluxError: if two files match the same image.
        """
        own = self.folder / benchmark.name
        wanted = {item.name for item in benchmark.items}
        found: dict[str, Path] = {}
        for path in sorted((own if own.is_dir() else self.folder).iterdir()):
            if path.stem not in wanted or not is_photo_file(path):
                continue
            if path.stem in found:
                raise ColorFluxError(
                    f"{found[path.stem]} and {path} both match {path.stem} of {self.name}: remove"
                    " one"
                )
            found[path.stem] = path
        return found


def require_results(method: Method, sets: Sequence[BenchmarkSet]) -> None:
    """Raise ColorFluxError if there are no results, or it is unclear which set they belong to."""
    if not method.folder.is_dir():
        raise ColorFluxError(f"{method.name}: {method.folder} is not a folder")
    if not any(method.results(benchmark) for benchmark in sets):
        raise ColorFluxError(
            f"{method.name}: no file in {method.folder} is named like an image of the benchmark"
        )
    flat = [set for set in sets if not (method.folder / set.name).is_dir()]
    names = [item.name for set in flat for item in set.items]
    if len(flat) > 1 and any(method.results(set) for set in flat) and len({*names}) < len(names):
        folders = " and ".join(set.name for set in flat)
        raise ColorFluxError(
            f"{method.name}: the results in {method.folder} match several sets: move them into the"
            f" subfolders {folders}, or choose a set with --set"
        )
