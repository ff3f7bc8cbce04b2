"""Atomic writes: a file is replaced by a complete new one, or stays as it was."""

from __future__ import annotations

import errno
import os
import re
import stat
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory

from safetensors import SafetensorError

from .errors import ColorFluxError

ROOM_OR_OUTPUT = "make room or choose another output"
_NAME_BYTES = 200
_TEMPORARY = re.compile(r"\..+\.[0-9a-f]{8}\.part", re.DOTALL)

WRITE_ERRORS = (OSError, ValueError, RuntimeError, SafetensorError)
"""What Python, Pillow, torch and safetensors raise when a file cannot be written."""


@contextmanager
def atomic_write(
    path: Path, *, fix: str = ROOM_OR_OUTPUT, make_folder: bool = False
) -> Iterator[Path]:
    """Give the caller a temporary file beside ``path`` to write, then move it to ``path``.

    The temporary file exists and is empty; its name starts with a dot and ends in ``.part``. It is
    flushed to the disk before the move and deleted if the caller fails. A killed process may leave
    it behind, for :func:`remove_stale`.

    Args:
        path: The file to create or replace.
        fix: What the user can do when it cannot be written, for the error message.
        make_folder: Also create the file's folder and its parents.

    Raises:
        ColorFluxError: when the file cannot be written.
    """
    # File systems allow 255 bytes; the full name may need them all.
    beginning = os.fsencode(path.name)[:_NAME_BYTES].decode(errors="ignore")
    unfinished = path.with_name(f".{beginning}.{uuid.uuid4().hex[:8]}.part")
    lock = -1
    try:
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, "it is a folder")
        if make_folder:
            path.parent.mkdir(parents=True, exist_ok=True)
        lock = _create_locked(unfinished)
        mode = _mode(unfinished)
        yield unfinished
        _move(unfinished, path, mode)
    except WRITE_ERRORS as error:
        raise _write_error(path, error, fix) from error
    finally:
        if lock >= 0:
            unfinished.unlink(missing_ok=True)
            os.close(lock)


def remove_stale(folder: Path) -> None:
    """Delete the temporary files that killed processes left in a folder; others stay.

    A process that is still writing holds a lock on its file.
    """
    with suppress(OSError):
        for path in [path for path in folder.iterdir() if _TEMPORARY.fullmatch(path.name)]:
            with suppress(OSError):
                if path.is_file() and not _is_locked(path):
                    path.unlink()


@contextmanager
def atomic_write_folder(folder: Path, last: str, *, fix: str = ROOM_OR_OUTPUT) -> Iterator[Path]:
    """Give the caller a temporary folder to fill, then move its files to ``folder``.

    The files are moved only when all of them are complete, one by one and ``last`` at the end;
    other files in ``folder`` stay.

    Args:
        folder: Created if it does not exist.
        last: Name of the file that makes the folder valid. The caller must create it, and all
            files get its permissions.
        fix: As in :func:`atomic_write`.

    Raises:
        ColorFluxError: when a file cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=folder, prefix=".", suffix=".part") as name:
            unfinished = Path(name)
            yield unfinished
            mode = _mode(unfinished / last)
            files = (path for path in unfinished.rglob("*") if path.is_file())
            for file in sorted(files, key=lambda path: path == unfinished / last):
                target = folder / file.relative_to(unfinished)
                target.parent.mkdir(parents=True, exist_ok=True)
                _move(file, target, mode)
    except WRITE_ERRORS as error:
        raise _write_error(folder, error, fix) from error


def _create_locked(path: Path) -> int:
    """Create the file; its lock lasts until the descriptor is closed, or the process ends."""
    while True:
        descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o666)
        if sys.platform == "win32":  # The move needs the file closed there.
            os.close(descriptor)
            return os.open(os.devnull, os.O_RDONLY)
        with suppress(OSError):  # Some network file systems have no locks.
            _lock(descriptor)
        if path.exists():  # Else it was taken for stale before it was locked.
            return descriptor
        os.close(descriptor)


def _is_locked(path: Path) -> bool:
    with path.open("rb") as file:
        try:
            _lock(file.fileno())
        except OSError:
            return True
    return False


def _lock(descriptor: int) -> None:
    """Raises OSError when another process holds the lock. On Windows, open files are locked."""
    if sys.platform != "win32":
        import fcntl

        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _mode(new_file: Path) -> int:
    """The permissions of a file that was just created, which the umask determines."""
    return stat.S_IMODE(new_file.stat().st_mode)


def _move(unfinished: Path, target: Path, mode: int) -> None:
    """Move a file that is flushed to the disk first.

    Some libraries put a file of their own in place of the temporary one, readable by its owner
    only, hence ``mode``.
    """
    unfinished.chmod(mode)
    with unfinished.open("rb+") as file:
        os.fsync(file.fileno())
    unfinished.replace(target)


def _write_error(path: Path, error: Exception, fix: str) -> ColorFluxError:
    reason = error.strerror if isinstance(error, OSError) and error.strerror else error
    return ColorFluxError(f"{path} cannot be written ({reason}): {fix}.")
