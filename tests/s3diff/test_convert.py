"""From the published pickles to one safetensors file, and nothing else from anything else."""

from __future__ import annotations

import json
import os
import pickle
import resource
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from colorflux_core.errors import ColorFluxError
from colorflux_core.s3diff.convert import convert, main
from tests.cli.command_runs import refused, result_of
from tests.s3diff import models as tiny

QUERY = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("published")
    tiny.save_published(folder)
    return folder


@pytest.fixture(autouse=True)
def in_a_folder_with_both(originals: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(originals, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)


def converted(
    unet: dict[str, Any] = tiny.UNET, output: str = "out/s3diff.safetensors"
) -> dict[str, Tensor]:
    convert(Path("s3diff.pkl"), Path("de_net.pth"), Path(output), unet, tiny.VAE)
    return load_file(output)


def refusal(*named: str, **how: Any) -> str:
    """The one line; what there was at the output is untouched, and nothing lies beside it."""
    Path("out").mkdir(exist_ok=True)
    Path("out/s3diff.safetensors").write_text("an earlier result")
    with pytest.raises(ColorFluxError) as caught:
        converted(**how)
    assert [path.name for path in Path("out").iterdir()] == ["s3diff.safetensors"]
    assert Path("out/s3diff.safetensors").read_text() == "an earlier result"
    message = str(caught.value)
    assert "\n" not in message
    assert not [name for name in named if name not in message], message
    return message


def test_every_tensor_is_there_under_our_name() -> None:
    state, published, de_net = converted(), tiny.published(), tiny.published_de_net()
    expected = {
        f"unet.{QUERY}.lora_A.weight": ("state_dict_unet", f"{QUERY}.lora_A.default.weight"),
        "unet.conv_in.bias": ("state_dict_unet", "conv_in.bias"),
        "vae.encoder.conv_in.lora_B.weight": (
            "state_dict_vae",
            "encoder.conv_in.lora_B.vae_skip.weight",
        ),
        "vae_modulator.fuse_mlp.bias": ("state_dict_vae_fuse_mlp", "bias"),
        "unet_modulator.de_mlp.0.weight": ("state_dict_unet_de_mlp", "0.weight"),
    }
    for name, (part, key) in expected.items():
        assert torch.equal(state[name], published[part][key])
    embeddings = published["state_embeddings"]["state_dict_unet_block"]["weight"]
    assert torch.equal(state["unet_modulator.block_embeddings.weight"], embeddings)
    assert torch.equal(state["frequencies"], published["w"])
    for key, tensor in de_net.items():
        assert torch.equal(state[f"de_net.{key}"], tensor)
    parts = [value for value in published.values() if isinstance(value, dict)]
    count = sum(len(part) for part in parts)
    assert len(state) == count + 1 + len(de_net)


def test_the_file_says_what_it_is() -> None:
    converted()
    with safe_open("out/s3diff.safetensors", framework="pt") as file:
        metadata = file.metadata()
    assert json.loads(metadata.pop("targets_unet")) == tiny.UNET_TARGETS
    assert json.loads(metadata.pop("targets_vae")) == tiny.VAE_TARGETS
    assert "zhangap/S3Diff" in metadata.pop("source")
    assert metadata == {
        "format": "colorflux-s3diff",
        "format_version": "1",
        "rank_unet": str(tiny.RANK_UNET),
        "rank_vae": str(tiny.RANK_VAE),
        "alpha": "8",
        "licence": "Apache-2.0",
    }
    assert Path("out/s3diff.safetensors").stat().st_mode & 0o777 == 0o644


def test_tensors_may_share_memory() -> None:
    published = torch.load("s3diff.pkl", weights_only=True)
    bias = published["state_dict_vae_de_mlp"]["0.bias"]
    published["state_dict_unet_de_mlp"]["0.bias"] = bias
    torch.save(published, "s3diff.pkl")
    state = converted()
    for network in ("vae", "unet"):
        assert torch.equal(state[f"{network}_modulator.de_mlp.0.bias"], bias)


# What is not the published checkpoint


class Code:
    """Unpickled the unsafe way, it leaves a file behind."""

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, ("echo executed > executed",)


@pytest.mark.parametrize("pickled", [torch.save, lambda x, path: path.write_bytes(pickle.dumps(x))])
@pytest.mark.parametrize("name", ["s3diff.pkl", "de_net.pth"])
def test_code_in_a_pickle_is_not_executed(pickled: Callable[[Any, Path], None], name: str) -> None:
    content = torch.load(name, weights_only=True)
    pickled({**content, "w": Code()}, Path(name))
    refusal(name, "more than weights")
    assert not Path("executed").exists()


def without_ranks(published: dict[str, Any]) -> str:
    del published["rank_unet"]
    return "rank_unet"


def without_a_part(published: dict[str, Any]) -> str:
    del published["state_dict_vae_fuse_mlp"]
    return "state_dict_vae_fuse_mlp"


def without_targets(published: dict[str, Any]) -> str:
    del published["unet_lora_target_modules"]
    return "unet_lora_target_modules"


def without_a_tensor(published: dict[str, Any]) -> str:
    del published["state_dict_unet"][f"{QUERY}.lora_B.default.weight"]
    return f"lacks unet.{QUERY}.lora_B.weight"


def with_a_tensor_too_many(published: dict[str, Any]) -> str:
    published["state_dict_vae"]["encoder.skip_conv.weight"] = torch.zeros(1)
    return "unknown vae.encoder.skip_conv.weight"


def with_another_adapter(published: dict[str, Any]) -> str:
    state = published["state_dict_unet"]
    published["state_dict_unet"] = {k.replace("default", "other"): v for k, v in state.items()}
    return "lora_A"


def with_a_wrong_shape(published: dict[str, Any]) -> str:
    published["state_dict_unet"]["conv_in.weight"] = torch.zeros(16, 4, 1, 1)
    return "(16, 4, 1, 1) instead of (16, 4, 3, 3)"


def with_a_wrong_rank(published: dict[str, Any]) -> str:
    published["rank_unet"] = 5
    return "(5, "


def with_no_rank(published: dict[str, Any]) -> str:
    published["rank_vae"] = 0
    return "ranks are (4, 0)"


def with_a_number(published: dict[str, Any]) -> str:
    published["state_dict_vae_de_mlp"]["0.bias"] = 3
    return "0.bias is not a tensor"


def with_nan(published: dict[str, Any]) -> str:
    published["w"] = published["w"] * torch.nan
    return "NaN or infinite values in frequencies"


@pytest.mark.parametrize(
    "damage",
    [
        without_ranks,
        without_a_part,
        without_targets,
        without_a_tensor,
        with_a_tensor_too_many,
        with_another_adapter,
        with_a_wrong_shape,
        with_a_wrong_rank,
        with_no_rank,
        with_a_number,
        with_nan,
    ],
)
def test_damaged_checkpoints(damage: Callable[[dict[str, Any]], str]) -> None:
    published = torch.load("s3diff.pkl", weights_only=True)
    named = damage(published)
    torch.save(published, "s3diff.pkl")
    refusal("s3diff.pkl", named)


def test_a_damaged_de_net() -> None:
    whole = tiny.published_de_net()
    key = "body.0.6.weight"
    for damaged, named in (
        ({**whole, key: whole[key] * torch.nan}, f"NaN or infinite values in de_net.{key}"),
        ({**whole, key: whole[key][:1]}, f"wrong shape at de_net.{key}"),
        ({**whole, "extra": whole[key]}, "unknown de_net.extra"),
    ):
        torch.save(damaged, "de_net.pth")
        refusal("de_net.pth", named)


@pytest.mark.parametrize("value", [[1, 2], torch.zeros(3), {}, {"a": torch.zeros(3)}])
@pytest.mark.parametrize("name", ["s3diff.pkl", "de_net.pth"])
def test_other_pickles(value: Any, name: str) -> None:
    torch.save(value, name)
    refusal(name)


def test_files_in_the_wrong_order() -> None:
    Path("s3diff.pkl").rename("other")
    Path("de_net.pth").rename("s3diff.pkl")
    Path("other").rename("de_net.pth")
    refusal("s3diff.pkl", "rank_unet")


@pytest.mark.parametrize("name", ["s3diff.pkl", "de_net.pth"])
@pytest.mark.parametrize("bytes_left", [0, 1, 2, 70, 5000, -1000, -1])
def test_truncated_files(name: str, bytes_left: int) -> None:
    Path(name).write_bytes(Path(name).read_bytes()[:bytes_left])
    refusal(name)


@pytest.mark.parametrize("content", [b"not a pickle", b"\x80\x04.", b"\x00" * 100, b"l0\n."])
def test_what_is_no_pickle(content: bytes) -> None:
    Path("s3diff.pkl").write_bytes(content)
    refusal("s3diff.pkl")


@pytest.mark.parametrize("name", ["s3diff.pkl", "de_net.pth"])
def test_missing_files(name: str) -> None:
    Path(name).unlink()
    refusal(name, "does not exist")


STABLE_DIFFUSION_1 = {"cross_attention_dim": 12, "use_linear_projection": False}
XL = {
    "block_out_channels": (16, 32, 32),
    "attention_head_dim": (2, 4, 4),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
}


@pytest.mark.parametrize("other", [STABLE_DIFFUSION_1, XL])
def test_weights_for_another_stable_diffusion(other: dict[str, Any]) -> None:
    refusal("s3diff.pkl", "unet.", unet={**tiny.UNET, **other})


def test_a_full_disk_leaves_nothing_half_written() -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        refusal("out/s3diff.safetensors cannot be written")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.mark.parametrize("output", ["folder.safetensors", "s3diff.pkl/s.safetensors"])
def test_places_that_cannot_be_written(output: str) -> None:
    Path("folder.safetensors").mkdir()
    refusal(output, "cannot be written", output=output)


# The command


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["s3diff.pkl"], ["DE_NET.pth", "--help"]),
        (["s3diff.pkl", "de_net.pth", "--format", "x"], ["--format"]),
        (["nowhere.pkl", "de_net.pth"], ["nowhere.pkl"]),
        (["s3diff.pkl", "de_net.pth"], ["s3diff.pkl", "wrong shape"]),
        (["s3diff.pkl", "de_net.pth", "-o", "s3diff.pkl"], ["s3diff.pkl", ".safetensors"]),
    ],
)
def test_what_cannot_be_converted_is_one_line(
    capsys: pytest.CaptureFixture[str], arguments: list[str], named: list[str]
) -> None:
    refused("s3diff.convert", result_of(main, arguments, capsys), *named)
    assert sorted(path.name for path in Path().iterdir()) == ["de_net.pth", "s3diff.pkl"]


def test_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["--help"])
    out = capsys.readouterr().out
    assert out.startswith("usage: python -m colorflux_core.s3diff.convert S3DIFF.pkl DE_NET.pth")
    assert "Nothing in the pickles is executed" in out
