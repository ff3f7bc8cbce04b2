"""A Qwen2.5-VL of any size, or what was made of one, from a local folder."""

from __future__ import annotations

import functools
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from transformers import (
    ProcessorMixin,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
)

from ...digest import sha256
from ...errors import ColorFluxError
from .backend import Ask, Unanswered, shown
from .limits import MAX_PIXELS, MAX_TOKENS
from .template import Turn

MEBIBYTE = 2**20
LOADING_ERRORS = (
    AttributeError,
    ImportError,
    LookupError,
    OSError,
    RuntimeError,
    SafetensorError,
    TypeError,
    ValueError,
)


@dataclass(frozen=True)
class LocalModel:
    """Replies are decoded greedily, one at a time."""

    folder: Path

    device: str = "auto"
    """auto spreads the model over all GPUs there are, and the memory if it must."""

    dtype: str = "auto"
    """auto is that of the files."""

    max_pixels: int = MAX_PIXELS
    """Of an image; the model's processor may shrink it further."""

    max_tokens: int = MAX_TOKENS
    """Of a reply."""

    @functools.cached_property
    def model(self) -> str:
        """The folder's name and a hash: of the weights' sizes and ends, and of all settings.

        Raises ColorFluxError when there are no weights in it.
        """
        contents: list[bytes] = []
        for path in weight_files(self.folder):
            size = path.stat().st_size
            with path.open("rb") as file:
                file.seek(max(0, size - MEBIBYTE))
                contents += [f"{path.name} {size}".encode(), file.read()]
        for path in sorted(self.folder.glob("*.json")):
            contents += [path.name.encode(), path.read_bytes()]
        return f"{self.folder.resolve().name} {sha256(*contents)[:16]}"

    @property
    def settings(self) -> dict[str, object]:
        return {
            "temperature": 0,
            "dtype": self.dtype,
            "max_pixels": self.max_pixels,
            "max_tokens": self.max_tokens,
        }

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[Ask]:
        load = functools.cache(self.load)  # Not before there is something to ask.

        async def ask(turns: Sequence[Turn]) -> str:
            return self.reply(*load(), turns)

        yield ask

    def load(self) -> tuple[Any, Any]:
        """The model and its processor. Raises ColorFluxError when they cannot be had."""
        try:
            processor = StillsProcessor.from_pretrained(
                self.folder, local_files_only=True, backend="pil"
            )
            model = Qwen2_5_VLForConditionalGeneration.from_pretrained(
                self.folder, local_files_only=True, device_map=self.device, dtype=self.dtype
            )
        except LOADING_ERRORS as error:
            raise ColorFluxError(
                f"--judge: {self.folder} cannot be used as a Qwen2.5-VL ({first_line(error)})"
            ) from error
        return model.eval(), processor

    def reply(self, model: Any, processor: Any, turns: Sequence[Turn]) -> str:
        conversation = [
            {"role": turn.role, "content": [content(part, self.max_pixels) for part in turn.parts]}
            for turn in turns
        ]
        try:
            inputs = processor.apply_chat_template(
                conversation,
                add_generation_prompt=True,
                tokenize=True,
                return_dict=True,
                return_tensors="pt",
            ).to(model.device)
            tokens = model.generate(
                **inputs,
                do_sample=False,
                temperature=None,
                top_k=None,
                top_p=None,
                max_new_tokens=self.max_tokens,
            )
        except (MemoryError, RuntimeError, ValueError) as error:
            raise Unanswered(
                f"the model fails ({first_line(error)}): if it takes too much memory, lower"
                " --judge-max-pixels."
            ) from error
        said = tokens[0, inputs["input_ids"].shape[1] :]
        return str(processor.decode(said, skip_special_tokens=True))


def weight_files(folder: Path) -> list[Path]:
    """Raises ColorFluxError when there are none."""
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise ColorFluxError(f"{folder} holds no weights: *.safetensors are read, see --judge")
    return files


class StillsProcessor(Qwen2_5_VLProcessor):
    """Without its part for videos, which would want torchvision."""

    def __init__(self, image_processor: Any, tokenizer: Any, chat_template: Any = None) -> None:
        self.image_token, self.video_token = "<|image_pad|>", "<|video_pad|>"
        self.image_token_id = tokenizer.convert_tokens_to_ids(self.image_token)
        self.video_token_id = tokenizer.convert_tokens_to_ids(self.video_token)
        ProcessorMixin.__init__(self, image_processor, tokenizer, chat_template=chat_template)


def content(part: str | Path, max_pixels: int) -> dict[str, object]:
    """Raises NoVerdict when an image cannot be read."""
    if isinstance(part, str):
        return {"type": "text", "text": part}
    return {"type": "image", "image": shown(part, max_pixels)}


def first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__
