"""Load S3Diff and S3Diff Restore in a real ComfyUI, with a tiny SD-Turbo."""

# ruff: noqa: E402  ComfyUI's modules are there only once need_comfyui has found them.

from __future__ import annotations

import os
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.nodes.node_runs import refused, run
from tests.nodes.pack import NAME, need_comfyui, node_classes

need_comfyui()

import comfy.model_management as mm
import comfy.utils
import folder_paths
from comfy.model_patcher import ModelPatcher
from safetensors.torch import save_file
from transformers import CLIPTextModel

from colorflux_core.s3diff.checkpoint import load_s3diff
from colorflux_core.s3diff.options import Restoration
from colorflux_core.s3diff.restorer import restore
from tests.nodes.comfy_models import use_folder
from tests.s3diff import models as tiny
from tests.s3diff.sd_turbo_file import SD_TURBO, single_file

# Each has two tiles of 256 pixels.
PHOTOS = torch.rand(2, 40, 300, 3, generator=torch.Generator().manual_seed(0))
FILES = {"s3diff": "converted.safetensors", "sd_turbo": "sd_turbo.safetensors"}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ComfyUI's models, and beside them SD-Turbo as a diffusers folder."""
    folder = tmp_path_factory.mktemp("models")
    for kind in ("s3diff", "checkpoints"):
        (folder / kind).mkdir()
    tiny.save_converted(folder / "s3diff").rename(folder / "s3diff" / FILES["s3diff"])
    text = CLIPTextModel.from_pretrained(tiny.save_sd_turbo(folder / "sd-turbo") / "text_encoder")
    unet, vae, text = (network.state_dict() for network in (*tiny.tiny_networks(), text))
    layout = single_file(unet, vae, text, SD_TURBO)
    save_file(layout, folder / "checkpoints" / FILES["sd_turbo"])
    return folder


@pytest.fixture(autouse=True)
def _in_comfyui(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """These are ComfyUI's models, and the shape of SD-Turbo is the tiny one's."""
    for kind in ("s3diff", "checkpoints"):
        use_folder(monkeypatch, kind, models / kind)
    sd_turbo = import_module(f"{NAME}.colorflux_core.s3diff.sd_turbo")
    for part in ("UNET", "VAE", "TEXT"):
        monkeypatch.setattr(sd_turbo, part, getattr(tiny, part))


def load(**files: str) -> ModelPatcher:
    (patcher,) = run("ColorFlux_LoadS3Diff", **FILES | files)
    return patcher


@pytest.fixture
def s3diff() -> ModelPatcher:
    return load()


def restored(s3diff: ModelPatcher, image: Tensor = PHOTOS, tile: int = 256, **how: Any) -> Tensor:
    (result,) = run("ColorFlux_S3DiffRestore", s3diff=s3diff, image=image, tile=tile, **how)
    return result


def restored_headless(models: Path, image: Tensor, *on_tile: Any, **how: Any) -> Tensor:
    model = load_s3diff(models / "s3diff" / FILES["s3diff"], models / "sd-turbo")
    return restore(model, image.movedim(-1, 1), Restoration(**how), *on_tile).movedim(1, -1)


@pytest.mark.parametrize(
    "how",
    [
        {"scale": 1.0, "tile": 768, "color_fix": "wavelet", "gray": True, "seed": 0},
        {"scale": 1.5, "tile": 256, "color_fix": "adain", "gray": False, "seed": 2**64 - 1},
    ],
)
def test_a_photo_becomes_what_it_becomes_without_comfyui(
    models: Path, s3diff: ModelPatcher, how: dict[str, Any]
) -> None:
    expected = restored_headless(models, PHOTOS[:1], **how)
    assert expected.std() > 0.05
    torch.testing.assert_close(restored(s3diff, PHOTOS[:1], **how), expected, rtol=0, atol=1e-5)


def test_each_photo_of_a_batch_is_what_it_is_alone(s3diff: ModelPatcher) -> None:
    together = restored(s3diff)
    assert not torch.equal(together[0], together[1])
    for photo, result in zip(PHOTOS, together, strict=True):
        assert torch.equal(restored(s3diff, photo[None])[0], result)


def test_on_a_cpu_it_computes_in_float32(s3diff: ModelPatcher) -> None:
    assert {weight.dtype for weight in s3diff.model.parameters()} == {torch.float32}


def test_unloaded_weights_come_back_as_they_were(s3diff: ModelPatcher) -> None:
    weights = {key: tensor.clone() for key, tensor in s3diff.model.state_dict().items()}
    first = restored(s3diff)
    mm.unload_all_models()
    assert torch.equal(restored(s3diff), first)
    after = s3diff.model.state_dict()
    assert all(torch.equal(after[key], tensor) for key, tensor in weights.items())


@pytest.fixture
def progress(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[float]]:
    """Where the bar has been, from 0 to 1; as in main.py, whoever moves it looks for Cancel."""
    seen: list[float] = []

    def hook(value: int, total: int, *_: object, **__: object) -> None:
        seen.append(value / total)
        mm.throw_exception_if_processing_interrupted()

    monkeypatch.setattr(comfy.utils, "PROGRESS_BAR_HOOK", hook)
    yield seen
    mm.interrupt_current_processing(False)


def test_progress_goes_by_tile(models: Path, s3diff: ModelPatcher, progress: list[float]) -> None:
    tiles: list[int] = []
    restored_headless(models, PHOTOS[:1], lambda _, count: tiles.append(count), tile=256)
    assert len(tiles) == tiles[0] >= 6
    restored(s3diff)
    steps = 2 * len(tiles)
    assert progress == sorted(progress)
    assert set(progress) == {step / steps for step in range(1, steps + 1)}


def test_cancel_stops_after_the_tile(s3diff: ModelPatcher, progress: list[float]) -> None:
    expected = restored(s3diff)
    progress.clear()
    mm.interrupt_current_processing()
    with pytest.raises(mm.InterruptProcessingException):
        restored(s3diff)
    assert len(progress) == 1
    assert torch.equal(restored(s3diff), expected)


def take_memory(monkeypatch: pytest.MonkeyPatch, s3diff: ModelPatcher, enough_for: int) -> None:
    """From now on memory runs out when a tile of more pixels is decoded."""
    decode = s3diff.model.decode

    def short_of_memory(z: Tensor) -> Tensor:
        if 8 * z.shape[-1] > enough_for:
            raise mm.OOM_EXCEPTION("Allocation on device")
        return decode(z)

    monkeypatch.setattr(s3diff.model, "decode", short_of_memory)


@pytest.mark.parametrize(("tile", "warnings"), [(768, ["768", "384"]), (320, ["320"])])
def test_without_memory_tiles_get_smaller(
    s3diff: ModelPatcher,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    tile: int,
    warnings: list[str],
) -> None:
    expected = restored(s3diff, tile=256)
    take_memory(monkeypatch, s3diff, enough_for=256)
    assert torch.equal(restored(s3diff, tile=tile), expected)
    # The second photo begins with the tiles with which the first went through.
    told = [record.getMessage() for record in caplog.records if record.name.startswith(NAME)]
    assert len(told) == len(warnings)
    assert all(size in message for size, message in zip(warnings, told, strict=True))


def test_no_memory_for_the_smallest_tiles(
    s3diff: ModelPatcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    take_memory(monkeypatch, s3diff, enough_for=128)
    with refused("S3Diff Restore: tile", "256", "memory"):
        restored(s3diff, tile=768)


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"s3diff": "gone"}, ("gone", "models/s3diff", "s3diff.convert", "zhangap/S3Diff")),
        ({"sd_turbo": "gone"}, ("gone", "models/checkpoints", "stabilityai/sd-turbo")),
    ],
)
def test_a_missing_file(files: dict[str, str], words: tuple[str, ...]) -> None:
    with refused("Load S3Diff", *words):
        load(**files)


def test_files_that_are_taken_for_each_other(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_folder(monkeypatch, "s3diff", models / "checkpoints")
    with refused("Load S3Diff", FILES["sd_turbo"], "s3diff.convert"):
        load(s3diff=FILES["sd_turbo"])
    use_folder(monkeypatch, "checkpoints", models / "s3diff")
    use_folder(monkeypatch, "s3diff", models / "s3diff")
    with refused("Load S3Diff", FILES["s3diff"], "another model"):
        load(sd_turbo=FILES["s3diff"])


def choices() -> dict[str, list[str]]:
    inputs = node_classes()["ColorFlux_LoadS3Diff"].GET_SCHEMA().inputs
    return {item.id: item.options for item in inputs}


def test_without_files_what_is_missing_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert choices() == {name: [file] for name, file in FILES.items()}
    for kind in ("s3diff", "checkpoints"):
        use_folder(monkeypatch, kind, tmp_path)
    assert choices() == {"s3diff": ["s3diff.safetensors"], "sd_turbo": ["sd_turbo.safetensors"]}


def test_only_converted_files_are_listed(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also in folders that extra_model_paths.yaml has added before the pack is loaded."""
    (tmp_path / "another.safetensors").touch()
    (tmp_path / "notes.txt").touch()
    monkeypatch.setattr(folder_paths, "models_dir", str(models))
    monkeypatch.delitem(folder_paths.folder_names_and_paths, "s3diff")
    folder_paths.add_model_folder_path("s3diff", str(tmp_path))
    import_module(f"{NAME}.nodes.load_s3diff").add_s3diff_folder()
    assert choices()["s3diff"] == ["another.safetensors", FILES["s3diff"]]


@pytest.mark.parametrize("kind", ["s3diff", "checkpoints"])
def test_a_file_that_was_written_again_is_loaded_again(models: Path, kind: str) -> None:
    node = node_classes()["ColorFlux_LoadS3Diff"]
    before = node.fingerprint_inputs(**FILES)
    assert node.fingerprint_inputs(**FILES) == before
    for file in (models / kind).glob("*.safetensors"):
        os.utime(file, ns=(1, 1))
    assert node.fingerprint_inputs(**FILES) != before


@pytest.mark.parametrize("image", [torch.zeros(1, 64, 64), {"samples": torch.zeros(1, 4, 8, 8)}])
def test_an_image_that_is_none(s3diff: ModelPatcher, image: Any) -> None:
    with refused("S3Diff Restore: image", "connect an IMAGE"):
        restored(s3diff, image)


def test_a_linked_tile_that_cannot_be(s3diff: ModelPatcher) -> None:
    with refused("tile is 700", "multiple of 64"):
        restored(s3diff, tile=700)
