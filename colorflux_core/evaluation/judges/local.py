"""Judge backend for a local Qwen2.5-VL model of any size, or a fine-tuned one."""

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
from .backend import Chat, NoReply, load_image
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
    """A folder of Qwen2.5-VL weights. Decoding is greedy, one conversation at a time."""

    folder: Path

    device: str = "auto"
    """``auto`` spreads the model over all GPUs and, if needed, CPU memory."""

    dtype: str = "auto"
    """``auto`` keeps the dtype of the files."""

    max_pixels: int = MAX_PIXELS
    """Larger images are shrunk to this; the model's processor may shrink them further."""

    max_tokens: int = MAX_TOKENS
    """Maximum length of a reply, in tokens."""

    @functools.cached_property
    def model(self) -> str:
        """The folder's name and a hash of its JSON files and the size and tail of each weight file.

        Raises:
            ColorFluxError: if the folder has no weights.
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
    async def session(self) -> AsyncIterator[Chat]:
        load = functools.cache(self.load)  # Loads at the first request that is not cached.

        async def chat(turns: Sequence[Turn]) -> str:
            return self.reply(*load(), turns)

        yield chat

    def load(self) -> tuple[Any, Any]:
        """Load the model and its processor; raises ColorFluxError if that fails."""
        try:
            processor = StillsProcessor.from_pretrained(
                self.folder, local_files_only=True, backend="pil"
            )
            model = Qwen2_5_VLForConditionalGeneration.from_pretrained(
                self.folder, local_files_only=True, device_map=self.device, dtype=self.dtype
            )
        except LOADING_ERRORS as error:
            raise ColorFluxError(
                f"--judge: {self.folder} cannot be loaded as a Qwen2.5-VL ({first_line(error)})"
            ) from error
        return model.eval(), processor

    def reply(self, model: Any, processor: Any, turns: Sequence[Turn]) -> str:
        """Generate a reply; raises NoReply if the model fails and NoVerdict for a bad image."""
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
            raise NoReply(
                f"the model failed ({first_line(error)}): if it ran out of memory, lower"
                " --judge-max-pixels."
            ) from error
        generated = tokens[0, inputs["input_ids"].shape[1] :]
        return str(processor.decode(generated, skip_special_tokens=True))


def weight_files(folder: Path) -> list[Path]:
    """List the folder's safetensors files; raises ColorFluxError if there are none."""
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise ColorFluxError(f"{folder} has no *.safetensors files: check --judge")
    return files


class StillsProcessor(Qwen2_5_VLProcessor):
    """The Qwen2.5-VL processor without its video part, which requires torchvision."""

    def __init__(self, image_processor: Any, tokenizer: Any, chat_template: Any = None) -> None:
        self.image_token, self.video_token = "<|image_pad|>", "<|video_pad|>"
        self.image_token_id = tokenizer.convert_tokens_to_ids(self.image_token)
        self.video_token_id = tokenizer.convert_tokens_to_ids(self.video_token)
        ProcessorMixin.__init__(self, image_processor, tokenizer, chat_template=chat_template)


def content(part: str | Path, max_pixels: int) -> dict[str, object]:
    """Convert a part to the chat template's format; raises NoVerdict for an unreadable image."""
    if isinstance(part, str):
        return {"type": "text", "text": part}
    return {"type": "image", "image": load_image(part, max_pixels)}


def first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__
