"""Judge backend for any OpenAI-compatible server, local or remote, such as vLLM."""

from __future__ import annotations

import asyncio
import base64
import io
import re
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from openai import (
    AsyncOpenAI,
    AuthenticationError,
    NotFoundError,
    OpenAIError,
    PermissionDeniedError,
)

from ...errors import ColorFluxError
from .backend import Chat, NoReply, load_image
from .limits import MAX_PIXELS, MAX_TOKENS, TIMEOUT
from .template import Turn

EXAMPLE = "http://127.0.0.1:8000/v1"
ADDRESS = re.compile(r"https?://(\[[\da-fA-F:.]+\]|[^\s/:?#\[\]]+)(:\d{1,5})?(/\S*)?")


@dataclass(frozen=True)
class Endpoint:
    """An OpenAI-compatible server. Of the environment variables, only proxy settings are used."""

    url: str
    """Base URL including the API version, such as ``EXAMPLE``."""

    model: str
    """The model's name on the server."""

    api_key: str = "none"
    """Self-hosted servers usually accept any key."""

    timeout: float = TIMEOUT
    """Timeout of one request, in seconds."""

    retries: int = 2
    """Retries of a failed or timed-out request, with exponential backoff."""

    max_pixels: int = MAX_PIXELS
    """Larger images are shrunk to this; images are sent as PNG."""

    max_tokens: int = MAX_TOKENS
    """Maximum length of a reply, in tokens."""

    def __post_init__(self) -> None:
        """Validate the URL; raises ColorFluxError if it is malformed."""
        address = ADDRESS.fullmatch(self.url)
        if not address or int((address[2] or ":1")[1:]) > 65535:
            raise ColorFluxError(f"--judge: {self.url} is not a valid URL; use one like {EXAMPLE}")

    @property
    def settings(self) -> dict[str, object]:
        return {"temperature": 0, "max_pixels": self.max_pixels, "max_tokens": self.max_tokens}

    @asynccontextmanager
    async def session(self) -> AsyncIterator[Chat]:
        # Omitted arguments would be read from OPENAI_* variables, which may be for another server.
        client = AsyncOpenAI(
            base_url=self.url,
            api_key=self.api_key,
            organization="",
            project="",
            timeout=self.timeout,
            max_retries=self.retries,
        )
        client._custom_headers = {}  # Ignore OPENAI_CUSTOM_HEADERS; no argument does this.
        async with client:
            yield partial(self.chat, client)

    async def chat(self, client: AsyncOpenAI, turns: Sequence[Turn]) -> str:
        """Return the server's reply to a conversation.

        Raises:
            NoReply: if the request failed or the reply is empty or malformed.
            ColorFluxError: if the server rejects the key or the model, so no request can succeed.
        """
        messages: list[Any] = [await message(turn, self.max_pixels) for turn in turns]
        try:
            answer = await client.chat.completions.create(
                model=self.model, messages=messages, temperature=0, max_tokens=self.max_tokens
            )
            text = answer.choices[0].message.content
        except (AuthenticationError, NotFoundError, PermissionDeniedError) as error:
            raise ColorFluxError(
                f"{self.url} rejects the request ({short(error)}): check --judge and --api-key-file"
            ) from error
        except OpenAIError as error:
            raise NoReply(
                f"{self.url} does not respond ({short(error)}): check --judge."
            ) from error
        except (AttributeError, LookupError, TypeError, ValueError) as error:
            raise NoReply(
                f"{self.url} does not respond like an OpenAI-compatible server: should --judge end"
                " in /v1?"
            ) from error
        if not text:
            raise NoReply(f"{self.url} returned an empty reply: raise --judge-max-tokens.")
        return text


async def message(turn: Turn, max_pixels: int) -> dict[str, object]:
    """Convert a turn to the format of the chat completions API.

    Raises:
        NoVerdict: if an image cannot be read.
    """
    if turn.role != "user":
        return {"role": turn.role, "content": "".join(map(str, turn.parts))}
    content: list[dict[str, object]] = []
    for part in turn.parts:
        if isinstance(part, str):
            content.append({"type": "text", "text": part})
        else:
            url = await asyncio.to_thread(data_url, part, max_pixels)
            content.append({"type": "image_url", "image_url": {"url": url}})
    return {"role": turn.role, "content": content}


def data_url(path: Path, max_pixels: int) -> str:
    """Encode an image as a PNG data URL, shrunk to at most ``max_pixels`` pixels."""
    encoded = io.BytesIO()
    load_image(path, max_pixels).save(encoded, "PNG", compress_level=1)
    return f"data:image/png;base64,{base64.b64encode(encoded.getvalue()).decode()}"


def short(error: OpenAIError) -> str:
    """Return the error in one line of at most 200 characters; some servers send an HTML page."""
    text = " ".join(str(error).split())
    return f"{text[:200]}..." if len(text) > 200 else text.rstrip(".")


def read_api_key(path: Path) -> str:
    """Read an API key; raises ColorFluxError if the file is unreadable or does not hold a key."""
    try:
        key = path.read_text(encoding="ascii").strip()
    except OSError as error:
        raise ColorFluxError(f"--api-key-file {path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ColorFluxError(f"--api-key-file {path} does not contain a key") from error
    if not key or not key.isprintable():
        raise ColorFluxError(f"--api-key-file {path} must contain the key and nothing else")
    return key
