"""A tiny random Qwen2.5-VL, from its folder to a verdict."""

from __future__ import annotations

import asyncio
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoTokenizer,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2VLImageProcessorPil,
)

from colorflux_core.errors import ColorFluxError
from colorflux_core.evaluation.judges.local import LocalModel
from colorflux_core.evaluation.judges.nr_iqa import Q_INSIGHT
from colorflux_core.evaluation.judges.qwen_score import QWEN_SCORE
from colorflux_core.evaluation.judges.runner import judge_methods
from colorflux_core.evaluation.judges.template import Turn
from tests.evaluation.judges.judge_server import colorized, made

SPECIAL = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
# As Qwen2.5-VL's, less its system message and videos.
CHAT = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n"
    "{% for part in message.content %}"
    "{% if part.type == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% else %}{{ part.text }}{% endif %}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny-qwen")
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = Tokenizer(models.BPE(vocab={c: n for n, c in enumerate(alphabet)}, merges=[]))
    words.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    words.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=[*SPECIAL],
        chat_template=CHAT,
    )
    place = {name: tokenizer.convert_tokens_to_ids(name) for name in SPECIAL}
    config = Qwen2_5_VLConfig(
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "rope_parameters": {
                "rope_type": "default",
                "mrope_section": [2, 3, 3],
                "rope_theta": 10000.0,
            },
            "bos_token_id": None,
            "eos_token_id": place["<|im_end|>"],
            "pad_token_id": place["<|endoftext|>"],
        },
        vision_config={
            "depth": 2,
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_heads": 2,
            "out_hidden_size": 32,
            "fullatt_block_indexes": [1],
            "window_size": 56,
        },
        image_token_id=place["<|image_pad|>"],
        video_token_id=place["<|video_pad|>"],
        vision_start_token_id=place["<|vision_start|>"],
        vision_end_token_id=place["<|vision_end|>"],
    )
    torch.manual_seed(0)
    model = Qwen2_5_VLForConditionalGeneration(config)
    for parameter in model.parameters():
        parameter.data.mul_(3)  # So that the reply depends on what is seen.
    model.generation_config.do_sample = True
    model.generation_config.temperature = 5.0
    for part in (
        model,
        tokenizer,
        Qwen2VLImageProcessorPil(size={"shortest_edge": 56 * 56, "longest_edge": 112 * 112}),
    ):
        part.save_pretrained(folder)
    return folder


def tiny(folder: Path, **options: Any) -> LocalModel:
    return LocalModel(folder, device="cpu", max_tokens=16, **options)


def reply(model: LocalModel, *turns: Turn) -> str:
    async def reply() -> str:
        async with model.session() as chat:
            return await chat(turns)

    return asyncio.run(reply())


def test_random_text_is_no_score(folder: Path, tmp_path: Path) -> None:
    benchmark = made(tmp_path, 2)
    arguments = ([benchmark], [colorized(tmp_path, benchmark)], tmp_path / "replies.jsonl")
    for judge in (QWEN_SCORE, Q_INSIGHT):
        verdicts = judge_methods(
            judge, tiny(folder), *arguments, attempts=2, concurrency=2, quiet=True
        )
        assert len(verdicts.scores) == 2 * len(judge.metrics)
        assert all(math.isnan(score.value) for score in verdicts.scores)
        assert [failure.partition("; the last")[0] for failure in verdicts.failures] == [
            f"real/{number}, DDColor: none of 2 replies could be parsed" for number in range(2)
        ]
    assert len((tmp_path / "replies.jsonl").read_text().splitlines()) == 2 * 2 * 2
    assert verdicts.provenance["model"].startswith(f"{folder.name} ")


def test_replies_are_greedy_and_see_the_images_in_order(folder: Path, tmp_path: Path) -> None:
    """Against the model's own generate() on inputs that are put together by hand."""
    images = []
    for name, color in {"gray": (90, 90, 90), "color": (250, 20, 120)}.items():
        images.append(tmp_path / f"{name}.png")
        Image.new("RGB", (56, 84), color).save(images[-1])
    model = tiny(folder)
    question = Turn("user", (images[0], images[1], "Well?"))

    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    pixels = Qwen2VLImageProcessorPil.from_pretrained(folder, local_files_only=True)(
        [Image.open(path) for path in images], return_tensors="pt"
    )
    pads = "<|image_pad|>" * (2 * 3)  # 56 x 84 pixels in merged patches of 28 x 28
    seen = f"<|vision_start|>{pads}<|vision_end|>"
    tokens = tokenizer(
        f"<|im_start|>user\n{seen}{seen}Well?<|im_end|>\n<|im_start|>assistant\n",
        return_tensors="pt",
    )["input_ids"]
    by_hand = Qwen2_5_VLForConditionalGeneration.from_pretrained(folder, local_files_only=True)
    expected = by_hand.generate(
        tokens,
        pixel_values=pixels["pixel_values"],
        image_grid_thw=pixels["image_grid_thw"],
        mm_token_type_ids=(tokens == by_hand.config.image_token_id).int(),
        do_sample=False,
        max_new_tokens=16,
    )
    text = tokenizer.decode(expected[0, tokens.shape[1] :], skip_special_tokens=True)
    assert reply(model, question) == reply(model, question) == text

    turned = question._replace(parts=(images[1], images[0], "Well?"))
    assert reply(model, turned) != text
    assert reply(model, question, Turn("assistant", ("So.",)), Turn("user", ("Again!",))) != text


def test_its_name_tells_weights_apart(folder: Path, tmp_path: Path) -> None:
    """And settings, such as a penalty on words that are said again."""
    other = Path(shutil.copytree(folder, tmp_path / folder.name))
    assert tiny(other).model == tiny(folder).model
    settings = (other / "generation_config.json").read_text()
    (other / "generation_config.json").write_text(settings + " ")
    assert tiny(other).model != tiny(folder).model
    (other / "generation_config.json").write_text(settings)
    weights = (folder / "model.safetensors").read_bytes()
    (other / "model.safetensors").write_bytes(weights[:-1] + bytes([weights[-1] ^ 1]))
    assert tiny(other).model != tiny(folder).model


def test_a_folder_that_is_no_model(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ColorFluxError, match=r"has no \*.safetensors files"):
        _ = tiny(tmp_path).model
    with pytest.raises(ColorFluxError, match=r"has no \*.safetensors files"):
        _ = tiny(tmp_path / "missing").model
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    with pytest.raises(ColorFluxError, match="cannot be loaded as a Qwen"):
        reply(tiny(tmp_path), Turn("user", ("Well?",)))
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(ColorFluxError, match="cannot be loaded as a Qwen"):
        reply(tiny(tmp_path), Turn("user", ("Well?",)))
    with pytest.raises(ColorFluxError, match="cannot be loaded as a Qwen"):
        reply(LocalModel(folder, device="nowhere"), Turn("user", ("Well?",)))
