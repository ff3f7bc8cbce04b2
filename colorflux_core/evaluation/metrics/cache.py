"""A persistent key-value cache in a file of JSON lines.

Each value is appended when it is added, so a killed process loses nothing. An incomplete last line
is ignored.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ...errors import ColorFluxError

BEGINNING = b'{"key": '


class Cache(Mapping[str, Any]):
    """Maps keys to JSON values; creates the file if needed.

    Raises:
        ColorFluxError: if the file cannot be read or written, or is not a cache.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.values_by_key: dict[str, Any] = {}
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("a+b") as file:
                file.seek(0)
                kept = file.read()
                if not BEGINNING.startswith(kept[: len(BEGINNING)].partition(b"\n")[0]):
                    raise ColorFluxError(f"{path} is not a cache file: move it elsewhere")
                if kept and not kept.endswith(b"\n"):
                    file.write(b"\n")
        except OSError as error:
            raise self._unusable(error) from error
        for line in kept.splitlines():
            try:
                known = json.loads(line)
                self.values_by_key[known["key"]] = known["value"]
            except (KeyError, TypeError, ValueError):
                continue

    def __getitem__(self, key: str) -> Any:
        return self.values_by_key[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self.values_by_key)

    def __len__(self) -> int:
        return len(self.values_by_key)

    def add(self, key: str, value: Any) -> None:
        """Append a value to the file; raises ColorFluxError if it cannot be written."""
        self.values_by_key[key] = value
        try:
            with self.path.open("a", encoding="ascii") as file:
                file.write(json.dumps({"key": key, "value": value}) + "\n")
        except OSError as error:
            raise self._unusable(error) from error

    def _unusable(self, error: OSError) -> ColorFluxError:
        return ColorFluxError(
            f"cannot write {self.path} ({error.strerror}): check the folder and the free disk space"
        )
