"""Reading and writing of CSV tables and other result files."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from pathlib import Path

from ..errors import ColorFluxError
from ..files import atomic_write


def write_rows(path: Path, columns: Sequence[str], rows: Iterable[Iterable[object]]) -> None:
    """Write a CSV table; raises ColorFluxError if the file or its folder cannot be written."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(rows)
    write_file(path, text.getvalue().encode())


def read_rows(path: Path, columns: Sequence[str]) -> list[list[str]]:
    """Read the rows of a CSV table, without the header.

    Raises:
        ColorFluxError: if the file is missing, malformed or has other columns.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = [row for row in csv.reader(file, strict=True) if row]
    except OSError as error:
        raise ColorFluxError(f"cannot read {path}: {error.strerror}") from error
    except (csv.Error, UnicodeDecodeError) as error:
        raise ColorFluxError(f"{path} is not a CSV file: {error}") from error
    header, *rows = rows or [[]]
    if header != list(columns) or any(len(row) != len(columns) for row in rows):
        raise ColorFluxError(f"{path} is damaged: its columns must be {', '.join(columns)}")
    return rows


def write_file(path: Path, content: bytes) -> None:
    """Write a file atomically, and create its folder if it does not exist.

    Raises ColorFluxError when the file cannot be written.
    """
    with atomic_write(path, make_folder=True) as unfinished:
        unfinished.write_bytes(content)
