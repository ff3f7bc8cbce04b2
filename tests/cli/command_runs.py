"""What the tests of the commands share: scans, runs, and runs that are cut short."""

from __future__ import annotations

import _thread
import signal
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

Result = tuple[int, list[str]]
"""Exit status and stderr's lines."""

Run = Callable[..., Result]

SCANS = 8


def result_of(
    main: Callable[[Sequence[str]], int], words: Sequence[str], capsys: pytest.CaptureFixture[str]
) -> Result:
    """What comes of a command."""
    capsys.readouterr()
    try:
        status = main(words)
    except SystemExit as exit:
        status = int(exit.code or 0)
    return status, capsys.readouterr().err.splitlines()


def scan(path: str, size: tuple[int, int] = (45, 30), mode: str = "L") -> Path:
    """A gray gradient, or for RGB a picture with colors."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    width, height = size
    ramp = np.add.outer(np.arange(height), np.arange(width)) * 255 // (width + height)
    samples = ramp if mode == "L" else np.stack([ramp, 255 - ramp, np.full_like(ramp, 80)], -1)
    Image.fromarray(samples.astype(np.uint8)).save(path)
    return Path(path)


def folder_of_scans() -> None:
    scan("in/a2.jpg", (40, 30))
    scan("in/a10.png", (33, 47))
    scan("in/sub/b.tif", (20, 60))


def many_scans(size: tuple[int, int]) -> None:
    for number in range(SCANS):
        scan(f"in/{number}.png", size)


def files(folder: str | Path) -> dict[str, bytes]:
    """Everything under a folder, hidden files too."""
    paths = sorted(path for path in Path(folder).rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def refused(prog: str, result: Result, *named: str, status: int = 2) -> None:
    """One line on stderr that says what and where."""
    assert result[0] == status
    (line,) = result[1]
    assert line.startswith(f"{prog}: error: ")
    assert not [name for name in named if name not in line], line


def wait_for_a_result() -> None:
    deadline = time.monotonic() + 60
    while not any(Path("out").glob("[!.]*")) and time.monotonic() < deadline:
        time.sleep(0.01)


def interrupted(run: Run, command: str) -> Result:
    """The run, with Ctrl+C after its first result."""

    def interrupt() -> None:
        wait_for_a_result()
        _thread.interrupt_main()

    # Heard even in a test run that a shell has put into the background.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    thread = threading.Thread(target=interrupt)
    thread.start()
    try:
        return run(command)
    finally:
        thread.join()
        signal.signal(signal.SIGINT, before)


def resumed(run: Run) -> None:
    """A second run does the rest of ``many_scans``, and leaves what the first had done."""
    done = {name: data for name, data in files("out").items() if not name.endswith(".part")}
    assert 0 < len(done) < SCANS
    for name in done:
        assert Image.open(f"out/{name}").size == Image.open(f"in/{name}").size
    status, lines = run("in -o out")
    assert status == 0
    assert lines[0].startswith(f"{len(done)} of {SCANS} already there")
    result = files("out")
    assert result.keys() == files("in").keys()
    assert done.items() <= result.items()
