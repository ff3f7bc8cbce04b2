"""SD-Turbo from a folder or a single file, S3Diff on top of it, and what is neither."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from colorflux_core.errors import ColorFluxError
from colorflux_core.s3diff import sd_turbo
from colorflux_core.s3diff.checkpoint import load_s3diff
from colorflux_core.s3diff.sd_turbo import load_networks, text_embeddings
from tests.nodes.pack import comfyui_path
from tests.s3diff import models as tiny
from tests.s3diff.sd_turbo_file import SD_TURBO, STABLE_DIFFUSION_2, single_file


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """S3Diff's checkpoint and SD-Turbo's diffusers folder."""
    folder = tmp_path_factory.mktemp("models")
    tiny.save_sd_turbo(folder / "sd-turbo")
    tiny.save_converted(folder)
    return folder


@pytest.fixture(autouse=True)
def the_published_size_is_tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("UNET", "VAE", "TEXT"):
        monkeypatch.setattr(sd_turbo, name, getattr(tiny, name))


def file_of(folder: Path, prefix: str = SD_TURBO) -> dict[str, Tensor]:
    """The folder's networks as the content of a single file."""
    unet, vae = load_networks(folder / "sd-turbo")
    text = CLIPTextModel.from_pretrained(folder / "sd-turbo/text_encoder")
    return single_file(unet.state_dict(), vae.state_dict(), text.state_dict(), prefix)


def saved(state: dict[str, Tensor], path: Path) -> Path:
    save_file({key: tensor.contiguous() for key, tensor in state.items()}, path)
    return path


@pytest.mark.parametrize("prefix", [SD_TURBO, STABLE_DIFFUSION_2])
def test_the_single_file_is_the_folder(folder: Path, tmp_path: Path, prefix: str) -> None:
    path = saved(file_of(folder, prefix), tmp_path / "sd_turbo.safetensors")
    for one, other in zip(load_networks(path), load_networks(folder / "sd-turbo"), strict=True):
        settings = json.loads(json.dumps(one.config)).items()
        assert all(value == other.config[key] for key, value in settings if key[0] != "_")
        state, expected = one.state_dict(), other.state_dict()
        assert state.keys() == expected.keys()
        assert all(torch.equal(state[key], expected[key]) for key in expected)
    assert torch.equal(text_embeddings(path), text_embeddings(folder / "sd-turbo"))


def test_a_file_of_half_precision(folder: Path, tmp_path: Path) -> None:
    half = {key: tensor.half() for key, tensor in file_of(folder).items()}
    path = saved(half, tmp_path / "sd_turbo.safetensors")
    for one, other in zip(load_networks(path), load_networks(folder / "sd-turbo"), strict=True):
        expected = other.state_dict()
        for key, tensor in one.state_dict().items():
            assert torch.equal(tensor, expected[key].half().float())
    embeddings = text_embeddings(path)
    assert embeddings.dtype == torch.float32
    torch.testing.assert_close(embeddings, text_embeddings(folder / "sd-turbo"), rtol=0, atol=0.01)


@pytest.mark.parametrize("source", ["folder", "file"])
def test_only_the_networks_are_in_half_precision(
    folder: Path, tmp_path: Path, source: str, capfd: pytest.CaptureFixture[str]
) -> None:
    path = folder / "sd-turbo"
    if source == "file":
        path = saved(file_of(folder), tmp_path / "sd_turbo.safetensors")
    capfd.readouterr()
    model = load_s3diff(folder / "s3diff.safetensors", path, dtype=torch.float16)
    assert "float32" not in capfd.readouterr().err
    whole = load_s3diff(folder / "s3diff.safetensors", path).state_dict()
    for key, tensor in model.state_dict().items():
        is_network = key.startswith(("unet.", "vae."))
        assert tensor.dtype == (torch.float16 if is_network else torch.float32), key
        assert torch.equal(tensor, whole[key].to(tensor.dtype)), key
    assert model.prompts.dtype == torch.float32


def test_sd_turbo_at_its_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    with torch.device("meta"):
        unet, vae = UNet2DConditionModel(**sd_turbo.UNET), AutoencoderKL(**sd_turbo.VAE)
        text = CLIPTextModel(CLIPTextConfig(**sd_turbo.TEXT))
    sizes = [sum(p.numel() for p in part.parameters()) for part in (unet, vae, text)]
    assert sizes == [865_910_724, 83_653_863, 340_387_840]
    layout = single_file(unet.state_dict(), vae.state_dict(), text.state_dict(), SD_TURBO)
    assert len([key for key in layout if key.startswith(SD_TURBO)]) == 294
    zeros = {key: torch.zeros(()).expand(tensor.shape) for key, tensor in layout.items()}
    monkeypatch.setattr(sd_turbo, "load_file", lambda _: zeros)
    loaded_unet, loaded_vae = load_networks(Path("sd_turbo.safetensors"))
    assert len(loaded_unet.state_dict()) == 686
    assert len(loaded_vae.state_dict()) == 248


# Prompts


def byte_tokenizer(folder: Path) -> CLIPTokenizer:
    """With CLIP's special tokens, but no byte pairs: a token for each letter."""
    letters = "abcdefghijklmnopqrstuvwxyz"
    words = [*letters, *(f"{letter}</w>" for letter in letters)]
    vocabulary = {word: number + 1 for number, word in enumerate(words)}
    vocabulary |= {"<|startoftext|>": 49406, "<|endoftext|>": 49407}
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    return CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"))


def test_a_prompt_of_ones_own_goes_through_the_tokenizer(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder / "sd-turbo", tmp_path / "sd-turbo")
    byte_tokenizer(tmp_path).save_pretrained(tmp_path / "sd-turbo/tokenizer")
    prompts = ["ab c", "", "abc" * 40]
    start, end, a, b, c = 49406, 49407, 1, 2, 3
    final = 26
    tokens = [
        [start, a, b + final, c + final, end, *[0] * 72],
        [start, end, *[0] * 75],
        [start, *[a, b, c] * 25, end],
    ]
    encoder = CLIPTextModel.from_pretrained(folder / "sd-turbo/text_encoder")
    with torch.no_grad():
        expected = encoder(torch.tensor(tokens)).last_hidden_state
    assert torch.equal(text_embeddings(tmp_path / "sd-turbo", prompts), expected)


def test_the_published_prompts_have_clips_tokens() -> None:
    comfyui = comfyui_path()
    if comfyui is None:
        pytest.skip("needs CLIP's vocabulary: name a ComfyUI's folder with COMFYUI_PATH")
    vocabulary = comfyui / "comfy/sd1_tokenizer"
    tokenizer = CLIPTokenizer(str(vocabulary / "vocab.json"), str(vocabulary / "merges.txt"))
    for prompt in (sd_turbo.POSITIVE, sd_turbo.NEGATIVE):
        ours = sd_turbo._tokens(Path("sd_turbo.safetensors"), prompt)
        theirs = tokenizer(prompt).input_ids
        assert ours == theirs + [tokenizer.convert_tokens_to_ids("!")] * (77 - len(theirs))


# What is not SD-Turbo


def refusal(folder: Path, path: Path, *named: str) -> None:
    with pytest.raises(ColorFluxError) as caught:
        load_s3diff(folder / "s3diff.safetensors", path)
    message = str(caught.value)
    assert "\n" not in message
    assert not [name for name in (path.name, *named) if name not in message], message


def stable_diffusion_1(state: dict[str, Tensor]) -> str:
    for key in [key for key in state if ".proj_in.weight" in key]:
        state[key] = state[key][:, :, None, None]
    for key in [key for key in state if key.startswith(SD_TURBO)]:
        state[key.replace(SD_TURBO, "cond_stage_model.transformer.text_model.")] = state.pop(key)
    return "text encoder"


def xl(state: dict[str, Tensor]) -> str:
    for key in [key for key in state if key.startswith(SD_TURBO)]:
        state[f"conditioner.embedders.1.model.{key.removeprefix(SD_TURBO)}"] = state.pop(key)
    state["conditioner.embedders.0.transformer.text_model.final_layer_norm.bias"] = torch.zeros(3)
    return "text encoder"


def a_lora(state: dict[str, Tensor]) -> str:
    state.clear()
    state["lora_unet_mid_block_attentions_0_proj_in.lora_up.weight"] = torch.zeros(2, 2)
    return "text encoder"


def a_convolution_where_a_linear_layer_belongs(state: dict[str, Tensor]) -> str:
    key = "model.diffusion_model.input_blocks.1.1.proj_in.weight"
    state[key] = state[key][:, :, None, None]
    return "The UNet in"


def without_a_network(state: dict[str, Tensor]) -> str:
    for key in [key for key in state if key.startswith("model.")]:
        del state[key]
    return "The UNet in"


def without_the_vae(state: dict[str, Tensor]) -> str:
    for key in [key for key in state if key.startswith("first_stage_model.")]:
        del state[key]
    return "VAE"


def with_nan_in_the_vae(state: dict[str, Tensor]) -> str:
    key = "first_stage_model.quant_conv.weight"
    state[key] = state[key] * torch.nan
    return "The VAE in"


def with_nan_in_the_text_encoder(state: dict[str, Tensor]) -> str:
    key = f"{SD_TURBO}ln_final.bias"
    state[key] = state[key] + torch.inf
    return "The text encoder in"


@pytest.mark.parametrize(
    "change",
    [
        stable_diffusion_1,
        xl,
        a_lora,
        a_convolution_where_a_linear_layer_belongs,
        without_a_network,
        without_the_vae,
        with_nan_in_the_vae,
        with_nan_in_the_text_encoder,
    ],
)
def test_other_single_files(
    folder: Path, tmp_path: Path, change: Callable[[dict[str, Tensor]], str]
) -> None:
    state = file_of(folder)
    named = change(state)
    refusal(folder, saved(state, tmp_path / "other.safetensors"), named)


@pytest.mark.parametrize("content", [None, b"", b"text", "truncated"])
def test_damaged_single_files(folder: Path, tmp_path: Path, content: bytes | str | None) -> None:
    path = tmp_path / "sd_turbo.safetensors"
    if content == "truncated":
        content = saved(file_of(folder), path).read_bytes()[:-100]
    if isinstance(content, bytes):
        path.write_bytes(content)
    refusal(folder, path)


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
def test_folders_that_are_not_whole(folder: Path, tmp_path: Path, part: str) -> None:
    path = tmp_path / "turbo"
    shutil.copytree(folder / "sd-turbo", path)
    weights = next((path / part).glob("*.safetensors"))
    state = load_file(weights)
    key = min(state)
    save_file({**state, key: state[key] * torch.nan}, weights, metadata={"format": "pt"})
    refusal(folder, path, part, "NaN")
    save_file(state | {key: torch.zeros(5)}, weights, metadata={"format": "pt"})
    refusal(folder, path, part, "wrong shape")
    del state[key]
    save_file(state, weights, metadata={"format": "pt"})
    refusal(folder, path, part, "lacks")
    weights.write_bytes(b"")
    refusal(folder, path, part)
    weights.unlink()
    refusal(folder, path, part)
    shutil.rmtree(path / part)
    refusal(folder, path, part)


@pytest.mark.parametrize(
    "other",
    [
        {"cross_attention_dim": 12, "use_linear_projection": False},
        {
            "block_out_channels": (16, 32, 32),
            "attention_head_dim": (2, 4, 4),
            "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        },
    ],
    ids=["1.5", "XL"],
)
def test_folders_of_other_stable_diffusions(
    folder: Path, tmp_path: Path, other: dict[str, Any]
) -> None:
    path = tmp_path / "other"
    shutil.copytree(folder / "sd-turbo", path)
    shutil.rmtree(path / "unet")
    UNet2DConditionModel(**{**tiny.UNET, **other}).save_pretrained(path / "unet")
    refusal(folder, path, "s3diff.safetensors", "unet.")


# What is not S3Diff's checkpoint


def test_checkpoints_that_were_not_converted(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "s3diff.safetensors"

    def refused(*named: str) -> None:
        with pytest.raises(ColorFluxError) as caught:
            load_s3diff(path, folder / "sd-turbo")
        message = str(caught.value)
        assert "\n" not in message
        assert not [name for name in (path.name, *named) if name not in message], message

    refused("does not exist")
    whole = (folder / "s3diff.safetensors").read_bytes()
    path.write_bytes(whole[:-1])
    refused()
    with safe_open(folder / "s3diff.safetensors", framework="pt") as file:
        metadata = file.metadata()
    state = load_file(folder / "s3diff.safetensors")
    save_file(state, path)
    refused("colorflux_core.s3diff.convert")
    save_file(state, path, {**metadata, "format_version": "99"})
    refused("99", "convert it again")
    save_file(state, path, {**metadata, "rank_unet": "many"})
    refused("many")
    save_file(state, path, {key: value for key, value in metadata.items() if key != "rank_vae"})
    refused("rank_vae")
    save_file({**state, "frequencies": torch.full((64,), torch.nan)}, path, metadata)
    refused("NaN", "frequencies")
    del state["de_net.conv_first.0.bias"]
    save_file(state, path, metadata)
    refused("lacks de_net.conv_first.0.bias")
