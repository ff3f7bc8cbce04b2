"""Load ColorFLUX Bundle: what it finds, what it loads, and what it says of a damaged bundle."""

# ruff: noqa: E402  ComfyUI's modules are there only once need_comfyui has found them.

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.nodes.node_runs import refused, run
from tests.nodes.pack import need_comfyui, node_classes

need_comfyui()

import folder_paths

from colorflux_core.bundles.bundle import load_bundle, save_bundle
from colorflux_core.bundles.bundle_config import EMBEDDED_NANO
from colorflux_core.model.pipeline import ColorFluxPipeline
from colorflux_core.model.settings import UNION_GRAY_MODE, Settings
from colorflux_core.photos.canvas import Canvas
from tests.nano_models import tiny_controlnet
from tests.nodes.comfy_models import Models, colorized, nano, siglip_pipeline, use_folder

NAME = "tiny"
CANVAS = Canvas(pixels=64)
SETTINGS = Settings(canvas=CANVAS, text_tokens=3)


@pytest.fixture
def bundles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty models/colorflux."""
    use_folder(monkeypatch, "colorflux", tmp_path)
    return tmp_path


def announce(folder: Path) -> None:
    """As little of a bundle as makes it one to choose."""
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(EMBEDDED_NANO / "colorflux.json", folder)


def listed() -> list[str]:
    options: list[str] = node_classes()["ColorFlux_LoadBundle"].GET_SCHEMA().inputs[0].options
    return options


def photo() -> Tensor:
    """Of canvas size, so that nothing is resized."""
    return torch.rand(1, 64, 64, 3, generator=torch.Generator().manual_seed(0))


def load(name: str = NAME, **options: Any) -> Models:
    return Models(*run("ColorFlux_LoadBundle", bundle=name, **options))


def difference_to_headless(folder: Path) -> float:
    """Of the decoded photos, nodes against pipeline, the bundle's settings in both."""
    bundle = load_bundle(folder)
    bundle.pipeline.set_progress_bar_config(disable=True)
    (expected,) = bundle.pipeline(
        photo().movedim(-1, 1),
        text_tokens=bundle.settings.text_tokens,
        control_mode=bundle.settings.control_mode,
        generator=torch.Generator("cpu").manual_seed(0),
        return_dict=False,
    )
    models = load(folder.name)
    decoded = colorized(models, photo(), pixels=models.canvas_pixels)
    assert decoded.std() > 0.01
    return (decoded - expected.movedim(1, -1)).abs().max().item()


def test_nano_is_always_there_and_comes_first(bundles: Path) -> None:
    assert listed() == ["nano (embedded)"]
    for name in ("b", "a/deep"):
        announce(bundles / name)
    (bundles / "not one").mkdir()
    assert listed() == ["nano (embedded)", "a/deep", "b"]


def test_linked_bundles_are_found(bundles: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Many keep their models elsewhere."""
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    announce(elsewhere)
    try:
        (bundles / "linked").symlink_to(elsewhere, target_is_directory=True)
    except OSError as error:
        pytest.skip(f"no links here: {error}")
    assert "linked" in listed()


def test_a_bundle_in_two_folders_is_the_first(
    bundles: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    second = tmp_path_factory.mktemp("second")
    folder_paths.add_model_folder_path("colorflux", str(second))
    folder_paths.add_model_folder_path("colorflux", str(second / "missing"))
    shutil.copytree(EMBEDDED_NANO, bundles / NAME)
    announce(second / NAME)
    assert listed() == ["nano (embedded)", NAME]
    assert load().canvas_pixels == 256


def test_a_bundle_that_is_gone(bundles: Path) -> None:
    with refused("Load ColorFLUX Bundle", "gone", "models/colorflux", "nano (embedded)"):
        load("gone")


VARIANTS: dict[str, Callable[[], tuple[ColorFluxPipeline, Settings]]] = {
    "siglip": lambda: (siglip_pipeline(), SETTINGS),
    "no text tokens": lambda: (siglip_pipeline(), Settings(canvas=CANVAS, text_tokens=0)),
    "quant convs": lambda: (
        siglip_pipeline(use_quant_conv=True, use_post_quant_conv=True),
        SETTINGS,
    ),
    "32 groups": lambda: (siglip_pipeline(norm_num_groups=32), SETTINGS),
    "one control block": lambda: (
        siglip_pipeline(controlnet=tiny_controlnet(num_layers=2, num_single_layers=0)),
        SETTINGS,
    ),
    "union": lambda: (
        siglip_pipeline(controlnet=tiny_controlnet(num_mode=7)),
        Settings(canvas=CANVAS, text_tokens=3, control_mode=UNION_GRAY_MODE),
    ),
    "control without guidance": lambda: (
        siglip_pipeline(controlnet=tiny_controlnet(guidance_embeds=False)),
        SETTINGS,
    ),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_bundle_of_any_shape_is_as_in_the_pipeline(bundles: Path, variant: str) -> None:
    save_bundle(bundles / NAME, *VARIANTS[variant]())
    assert difference_to_headless(bundles / NAME) < 1e-4


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sound")
    save_bundle(folder, siglip_pipeline(), SETTINGS)
    return folder


@pytest.fixture
def bundle(sound: Path, bundles: Path) -> Path:
    """A copy of the sound one, to be damaged."""
    return shutil.copytree(sound, bundles / NAME)


def weights_of(part: Path) -> Path:
    return next(part.glob("*.safetensors"))


def remove_folder(part: Path) -> None:
    shutil.rmtree(part)


def remove_config(part: Path) -> None:
    (part / "config.json").unlink()


def remove_weights(part: Path) -> None:
    weights_of(part).unlink()


def break_off(part: Path) -> None:
    whole = weights_of(part).read_bytes()
    weights_of(part).write_bytes(whole[: len(whole) // 2])


def leave_a_git_lfs_pointer(part: Path) -> None:
    weights_of(part).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n")


def spoil_config(part: Path) -> None:
    (part / "config.json").write_text("{", encoding="utf-8")


def empty_config(part: Path) -> None:
    (part / "config.json").write_text("{}", encoding="utf-8")


def config_is_a_list(part: Path) -> None:
    (part / "config.json").write_text("[]", encoding="utf-8")


def lose_a_tensor(part: Path) -> None:
    state = load_file(weights_of(part))
    save_file({key: state[key] for key in sorted(state)[1:]}, weights_of(part))


def lose_all_tensors(part: Path) -> None:
    save_file({}, weights_of(part))


def widen_a_tensor(part: Path) -> None:
    state = load_file(weights_of(part))
    first = max(state, key=lambda key: state[key].ndim)
    save_file(state | {first: torch.cat([state[first]] * 2)}, weights_of(part))


PARTS = ("transformer", "controlnet", "image_embedder", "image_encoder", "vae")
DAMAGES = (
    remove_folder,
    remove_config,
    remove_weights,
    break_off,
    leave_a_git_lfs_pointer,
    spoil_config,
    empty_config,
    config_is_a_list,
    lose_a_tensor,
    lose_all_tensors,
    widen_a_tensor,
)


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_part_is_named(bundle: Path, part: str, damage: Callable[[Path], None]) -> None:
    damage(bundle / part)
    with refused(part):
        load()


def change_config(bundle: Path, **values: Any) -> None:
    path = bundle / "colorflux.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(config | values), encoding="utf-8")


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"format_version": 99}, ("format_version 99", "update")),
        ({"settings": {"canvas": {"pixels": 100}}}, ("settings", "100", "multiple of 16")),
        ({"settings": {"colour": 1}}, ("settings", "colour")),
        ({"settings": {"text_tokens": -1}}, ("settings", "text_tokens")),
        ({"lora": "gone.safetensors"}, ("Load ColorFLUX Bundle", "gone.safetensors")),
    ],
)
def test_a_bad_colorflux_json(bundle: Path, values: dict[str, Any], words: tuple[str, ...]) -> None:
    change_config(bundle, **values)
    with refused(*words):
        load()


def test_a_colorflux_json_that_is_none(bundle: Path) -> None:
    (bundle / "colorflux.json").write_text("{", encoding="utf-8")
    with refused("colorflux.json", "cannot be read"):
        load()


def test_a_damaged_preprocessing_is_named(bundle: Path) -> None:
    shutil.rmtree(bundle / "feature_extractor")
    with refused("feature_extractor"):
        load()


def fingerprint() -> int:
    fingerprint: int = node_classes()["ColorFlux_LoadBundle"].fingerprint_inputs(
        bundle=NAME, lora_strength=1.0, weight_dtype="default"
    )
    return fingerprint


def test_a_bundle_that_was_saved_again_is_another(bundle: Path) -> None:
    before = fingerprint()
    assert fingerprint() == before
    save_bundle(bundle, siglip_pipeline(), SETTINGS)
    assert fingerprint() != before


@pytest.mark.parametrize(
    ("weight_dtype", "dtype"),
    [
        ("fp8_e4m3fn", torch.float8_e4m3fn),
        ("fp8_e4m3fn_fast", torch.float8_e4m3fn),
        ("fp8_e5m2", torch.float8_e5m2),
    ],
)
def test_fp8_weights_are_kept_and_lose_little(weight_dtype: str, dtype: torch.dtype) -> None:
    small = Models(*run("ColorFlux_LoadBundle", weight_dtype=weight_dtype))
    weights = small.model.model.diffusion_model.parameters()
    assert {weight.dtype for weight in weights} == {dtype}
    error = (colorized(small, photo()) - colorized(nano(), photo())).abs().mean()
    assert 0 < error < 0.05


@pytest.mark.usefixtures("bundle")
def test_at_strength_0_the_lora_is_left_out() -> None:
    assert load().model.patches
    assert not load(lora_strength=0.0).model.patches
