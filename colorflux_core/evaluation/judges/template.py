"""Judge prompts: a text with placeholders for the images."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

from ...digest import sha256
from ...errors import ColorFluxError

GRAY, COLORIZED, USER = "{gray}", "{colorized}", "{user}"


class Turn(NamedTuple):
    """One message of a conversation: texts and image files, in order."""

    role: Literal["system", "user", "assistant"]
    parts: tuple[str | Path, ...]


@dataclass(frozen=True)
class Template:
    """A text with the placeholders ``{gray}`` and ``{colorized}`` for the images.

    Text before an optional ``{user}`` is the system message. All other braces are literal, so a
    JSON example needs no escaping.
    """

    text: str

    @property
    def fingerprint(self) -> str:
        """Identifies the template; scores of different templates are not comparable."""
        return sha256(self.text.strip().encode())[:16]

    def turns(self, gray: Path, colorized: Path) -> tuple[Turn, ...]:
        """Fill in the images: an optional system message, then the user's message."""
        system, _, user = self.text.rpartition(USER)
        images = {GRAY: gray, COLORIZED: colorized}
        pieces = (piece.strip() for piece in re.split(f"({GRAY}|{COLORIZED})", user))
        question = Turn("user", tuple(images.get(piece, piece) for piece in pieces if piece))
        return (Turn("system", (system.strip(),)), question) if system.strip() else (question,)


def read_template(path: Path, like: Template) -> Template:
    """Read a custom template, such as the exact prompt of a paper.

    If it has no image placeholder, those of ``like`` are put first, gray before colorized.

    Raises:
        ColorFluxError: if the file cannot be read, is not UTF-8 or is empty.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ColorFluxError(f"--template {path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ColorFluxError(f"--template {path} is not UTF-8 text") from error
    if not text.strip():
        raise ColorFluxError(f"--template {path} is empty")
    if GRAY in text or COLORIZED in text:
        return Template(text)
    system, user, question = text.rpartition(USER)
    images = "\n".join(image for image in (GRAY, COLORIZED) if image in like.text)
    return Template(f"{system}{user}{images}\n{question}")
