"""What a judge is asked: a text, and the places of the images in it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

from ...digest import sha256
from ...errors import ColorFluxError

GRAY, COLORIZED, USER = "{gray}", "{colorized}", "{user}"


class Turn(NamedTuple):
    """What one side says: texts and the files of images, in this order."""

    role: Literal["system", "user", "assistant"]
    parts: tuple[str | Path, ...]


@dataclass(frozen=True)
class Template:
    """A text with ``{gray}`` and ``{colorized}`` where the images are.

    What stands before ``{user}``, if that is there, is the system's message. All other braces are
    text, so that a JSON form needs no escapes.
    """

    text: str

    @property
    def fingerprint(self) -> str:
        """Tells templates apart, since scores from different ones cannot be compared."""
        return sha256(self.text.strip().encode())[:16]

    def turns(self, gray: Path, colorized: Path) -> tuple[Turn, ...]:
        system, _, user = self.text.rpartition(USER)
        images = {GRAY: gray, COLORIZED: colorized}
        pieces = (piece.strip() for piece in re.split(f"({GRAY}|{COLORIZED})", user))
        question = Turn("user", tuple(images.get(piece, piece) for piece in pieces if piece))
        return (Turn("system", (system.strip(),)), question) if system.strip() else (question,)


def read_template(path: Path, like: Template) -> Template:
    """A template of one's own, such as the exact text of a paper.

    Where it says nothing of images, they come first: those that ``like`` has, gray before
    colorized. Raises ColorFluxError for a file that cannot be read or is empty.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ColorFluxError(f"--template {path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ColorFluxError(f"--template {path} is no UTF-8 text") from error
    if not text.strip():
        raise ColorFluxError(f"--template {path} is empty")
    if GRAY in text or COLORIZED in text:
        return Template(text)
    system, user, question = text.rpartition(USER)
    images = "\n".join(image for image in (GRAY, COLORIZED) if image in like.text)
    return Template(f"{system}{user}{images}\n{question}")
