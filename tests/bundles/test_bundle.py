from __future__ import annotations

import importlib
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from colorflux_core.bundles import bundle as bundle_module
from colorflux_core.bundles import components
from colorflux_core.bundles.bundle import LORA, Bundle, assemble, load_bundle, save_bundle
from colorflux_core.bundles.bundle_config import EMBEDDED_NANO, find_bundle
from colorflux_core.errors import ColorFluxError
from colorflux_core.model.colorization import colorize
from colorflux_core.model.lora import add_lora
from colorflux_core.model.pipeline import ColorFluxPipeline
from colorflux_core.model.settings import Settings
from colorflux_core.photos.canvas import Canvas
from tests.nano_models import SIGLIP, tiny_controlnet, tiny_pipeline

ROOT = Path(__file__).resolve().parents[2]
SETTINGS = Settings(canvas=Canvas("aspect", 32), steps=2, text_tokens=3, detail=0.5, seed=7)
WEIGHTS = "diffusion_pytorch_model.safetensors"


def picture(bundle: Bundle, **changes: Any) -> Tensor:
    bundle.pipeline.set_progress_bar_config(disable=True)
    photo = torch.rand(3, 45, 70, generator=torch.Generator().manual_seed(0))
    settings = Settings(**{**vars(bundle.settings), **changes})
    return colorize(bundle.pipeline, photo, settings)


def with_lora(pipeline: ColorFluxPipeline) -> ColorFluxPipeline:
    random = torch.Generator().manual_seed(0)
    for parameter in add_lora(pipeline.transformer, rank=2):
        nn.init.normal_(parameter, std=0.1, generator=random)
    return pipeline


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with nano's vision tower and a LoRA, in float16."""
    folder = tmp_path_factory.mktemp("bundles") / "whole"
    save_bundle(folder, with_lora(tiny_pipeline("lite")), SETTINGS, dtype=torch.float16)
    return folder


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    """A copy of its own, to be damaged."""
    return Path(shutil.copytree(whole, tmp_path / "bundle"))


# Writing and reading


@pytest.mark.parametrize("tower", ["siglip", "lite"])
def test_what_is_saved_is_what_is_loaded(tower: Any, tmp_path: Path) -> None:
    pipeline = with_lora(tiny_pipeline(tower))
    before = picture(Bundle(pipeline, SETTINGS))
    save_bundle(tmp_path, pipeline, SETTINGS, sources=["a", "b"], licences=["CC0-1.0"])
    assert torch.equal(picture(Bundle(pipeline, SETTINGS)), before)
    loaded = load_bundle(tmp_path)
    assert loaded.settings == SETTINGS
    assert torch.equal(picture(loaded), before)
    config = json.loads((tmp_path / "colorflux.json").read_text())
    assert (config["sources"], config["licences"]) == (["a", "b"], ["CC0-1.0"])


def test_diffusers_reads_the_folder_too(whole: Path) -> None:
    pipeline = ColorFluxPipeline.from_pretrained(whole)
    ours = load_bundle(whole)
    theirs = Bundle(pipeline, ours.settings)
    assert torch.equal(picture(theirs), picture(ours, lora_scale=0.0))
    pipeline.load_lora_weights(whole, weight_name=LORA)
    assert torch.equal(picture(theirs), picture(ours))


def test_weights_are_stored_small_and_computed_in_float32(whole: Path) -> None:
    stored = [load_file(path) for path in whole.rglob("*.safetensors")]
    assert {tensor.dtype for state in stored for tensor in state.values()} == {torch.float16}
    components = load_bundle(whole).pipeline.components.values()
    models = [part for part in components if isinstance(part, nn.Module)]
    assert {p.dtype for model in models for p in model.parameters()} == {torch.float32}
    assert {model.training for model in models} == {False}


def test_in_bfloat16_it_gives_nearly_the_same(whole: Path) -> None:
    difference = picture(load_bundle(whole, dtype=torch.bfloat16)) - picture(load_bundle(whole))
    assert 0 < difference.abs().mean() < 0.02


def test_siglip_keeps_the_prefix_that_comfyui_knows_it_by(tmp_path: Path) -> None:
    save_bundle(tmp_path, tiny_pipeline("siglip"), SETTINGS)
    state = load_file(tmp_path / "image_encoder" / "model.safetensors")
    assert all(key.startswith("vision_model.") for key in state)


def test_lora_scale_can_be_given_when_loading(whole: Path) -> None:
    full = load_bundle(whole)
    assert full.settings.lora_scale == 1.0
    half = load_bundle(whole, lora_scale=0.5)
    assert half.settings.lora_scale == 0.5
    assert torch.equal(picture(half), picture(full, lora_scale=0.5))
    assert not torch.equal(picture(half), picture(full))


def test_at_scale_0_there_is_no_lora(folder: Path) -> None:
    silent = picture(load_bundle(folder, lora_scale=0.0))
    config = json.loads((folder / "colorflux.json").read_text())
    (folder / "colorflux.json").write_text(json.dumps({**config, "lora": None}))
    (folder / LORA).unlink()
    assert torch.equal(picture(load_bundle(folder)), silent)


def test_a_bundle_can_be_saved_over_itself(folder: Path) -> None:
    (folder / "README.md").write_text("A model card.")
    loaded = load_bundle(folder)
    before = picture(loaded)
    save_bundle(folder, loaded.pipeline, loaded.settings)
    assert torch.equal(picture(loaded), before)  # its weights may lie in the old files
    assert torch.equal(picture(load_bundle(folder)), before)
    assert (folder / "README.md").exists()
    assert not list(folder.glob(".*"))


def test_it_does_not_say_on_which_machine_it_was_made(whole: Path, tmp_path: Path) -> None:
    pipeline = ColorFluxPipeline.from_pretrained(whole)
    save_bundle(tmp_path, pipeline, SETTINGS)
    configs = [path.read_text() for path in tmp_path.rglob("*.json")]
    assert len(configs) == 9
    assert not [config for config in configs if str(whole) in config]


def test_only_the_lora_it_knows_is_saved(whole: Path, tmp_path: Path) -> None:
    pipeline = ColorFluxPipeline.from_pretrained(whole)
    pipeline.load_lora_weights(whole, weight_name=LORA, adapter_name="mine")
    with pytest.raises(ColorFluxError, match="has the adapters mine"):
        save_bundle(tmp_path, pipeline, SETTINGS)


def test_others_may_read_the_weights(whole: Path) -> None:
    assert len({path.stat().st_mode for path in whole.rglob("*") if path.is_file()}) == 1


def test_a_failed_save_leaves_the_old_bundle(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def files() -> dict[Path, bytes]:
        return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}

    loaded, before = load_bundle(folder), files()
    calls = []

    def disk_full(*arguments: Any, **options: Any) -> None:
        calls.append(arguments)
        if len(calls) > 3:
            raise OSError(28, "No space left on device")
        save_file(*arguments, **options)

    monkeypatch.setattr(bundle_module, "save_file", disk_full)
    with pytest.raises(ColorFluxError, match=f"{folder}.*No space left"):
        save_bundle(folder, loaded.pipeline, Settings())
    assert files() == before


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ColorFluxError, match=r"file cannot be written \(File exists\)"):
        save_bundle(tmp_path / "file", tiny_pipeline(), SETTINGS)


def test_it_works_under_another_package_name(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ComfyUI imports a pack by its folder's name."""
    (tmp_path / "some_pack").mkdir()
    (tmp_path / "some_pack" / "colorflux_core").symlink_to(ROOT / "colorflux_core")
    monkeypatch.syspath_prepend(tmp_path)
    known = set(sys.modules)
    try:
        other = importlib.import_module("some_pack.colorflux_core.bundles.bundle")
        loaded = other.load_bundle(whole)
        assert type(loaded.pipeline.image_encoder).__module__.startswith("some_pack.")
        other.save_bundle(tmp_path / "again", loaded.pipeline, loaded.settings)
    finally:
        for name in set(sys.modules) - known:
            del sys.modules[name]
    index = "model_index.json"
    assert (tmp_path / "again" / index).read_text() == (whole / index).read_text()


def test_the_embedded_bundle_has_a_name(whole: Path) -> None:
    assert ROOT / "models" / "nano" == EMBEDDED_NANO
    assert find_bundle(whole) == find_bundle(str(whole)) == whole


# What can be wrong with one


def edit(path: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    state = {key: tensor.clone() for key, tensor in load_file(path).items()}
    change(state)
    save_file(state, path, metadata={"format": "pt"})


def damage(what: str) -> Callable[[Path], object]:
    """Something done to a bundle folder."""
    transformer, redux = f"transformer/{WEIGHTS}", f"image_embedder/{WEIGHTS}"

    def truncate(name: str) -> Callable[[Path], object]:
        return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:-100])

    def configure(**changes: object) -> Callable[[Path], object]:
        def write(folder: Path) -> None:
            path = folder / "colorflux.json"
            path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

        return write

    def poison(name: str, key: str, value: float) -> Callable[[Path], object]:
        return lambda folder: edit(folder / name, lambda state: state[key].view(-1)[0].fill_(value))

    def reshape(folder: Path) -> None:
        edit(folder / transformer, lambda s: s.update({"x_embedder.weight": torch.zeros(128, 60)}))

    def narrow(folder: Path) -> None:
        """A sound Redux for another transformer."""
        other = type(tiny_pipeline().image_embedder)(redux_dim=1808, txt_in_features=16)
        other.save_pretrained(folder / "image_embedder")

    def other_lora(folder: Path) -> None:
        cut = {key: a[:, :5].clone() for key, a in load_file(folder / LORA).items() if "_A" in key}
        edit(folder / LORA, lambda state: state.update(cut))

    ways: dict[str, Callable[[Path], object]] = {
        "no folder": shutil.rmtree,
        "no vae": lambda folder: shutil.rmtree(folder / "vae"),
        "no scheduler": lambda folder: shutil.rmtree(folder / "scheduler"),
        "no feature extractor": lambda folder: shutil.rmtree(folder / "feature_extractor"),
        "no weights": lambda folder: (folder / transformer).unlink(),
        "no config": lambda folder: (folder / "controlnet" / "config.json").unlink(),
        "no lora": lambda folder: (folder / LORA).unlink(),
        "broken json": lambda folder: (folder / "colorflux.json").write_text("{"),
        "list": lambda folder: (folder / "colorflux.json").write_text("[]"),
        "broken config": lambda folder: (folder / "vae" / "config.json").write_text("{"),
        "unknown tower": lambda folder: (folder / "image_encoder" / "config.json").write_text(
            '{"model_type": "clip"}'
        ),
        "version": configure(format_version=2),
        "unknown setting": configure(settings={"stepps": 3}),
        "bad setting": configure(settings={"steps": 0}),
        "wrong type": configure(settings={"steps": "many"}),
        "bad canvas": configure(settings={"canvas": {"mode": "square", "pixels": 100}}),
        "settings list": configure(settings=[1]),
        "truncated": truncate(transformer),
        "truncated tower": truncate("image_encoder/model.safetensors"),
        "empty": lambda folder: (folder / redux).write_bytes(b""),
        "missing tensor": lambda folder: edit(folder / redux, lambda s: s.pop("redux_up.bias")),
        "wrong shape": reshape,
        "nan": poison(transformer, "proj_out.weight", torch.nan),
        "infinite": poison("image_encoder/model.safetensors", "stem.weight", torch.inf),
        "nan lora": poison(
            LORA, "transformer.single_transformer_blocks.0.proj_mlp.lora_A.weight", torch.nan
        ),
        "another model": narrow,
        "lora for another": other_lora,
    }
    return ways[what]


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("no folder", r"no bundle in .*bundle: it has no colorflux.json"),
        ("no vae", r"vae is missing: .*bundle/vae does not exist"),
        ("no scheduler", r"scheduler is missing: .*bundle/scheduler"),
        ("no feature extractor", r"feature_extractor is missing: .*bundle/feature_extractor"),
        ("no weights", r"transformer cannot be read .*bundle/transformer: .*safetensors"),
        ("no config", r"controlnet cannot be read from .*config.json"),
        ("no lora", r"bundle/pro_dpo.safetensors"),
        ("broken json", r"bundle/colorflux.json cannot be read"),
        ("list", r"bundle/colorflux.json has format_version None"),
        ("broken config", r"vae cannot be read from .*bundle/vae"),
        ("unknown tower", r"bundle/image_encoder holds a clip"),
        ("version", r"colorflux.json has format_version 2.* reads 1: update"),
        ("unknown setting", r"colorflux.json has invalid settings: .*stepps"),
        ("bad setting", r"colorflux.json has invalid settings: steps is 0"),
        ("wrong type", r"colorflux.json has invalid settings: .*str"),
        ("bad canvas", r"colorflux.json has invalid settings: .*100"),
        ("settings list", r"colorflux.json has invalid settings"),
        ("truncated", r"transformer cannot be read from .*bundle/transformer"),
        ("truncated tower", r"image_encoder cannot be read from .*bundle/image_encoder"),
        ("empty", r"image_embedder cannot be read from .*bundle/image_embedder"),
        ("missing tensor", r"bundle/image_embedder lacks redux_up.bias"),
        ("wrong shape", r"bundle/transformer .* x_embedder.weight: \(128, 60\).*\(128, 64\)"),
        ("nan", r"bundle/transformer has NaN .* in proj_out.weight"),
        ("infinite", r"bundle/image_encoder has .*infinite.* in stem.weight"),
        ("nan lora", r"bundle/pro_dpo.safetensors .*NaN"),
        ("another model", r"image_embedder and .*transformer are for different models: .* 16"),
        ("lora for another", r"bundle/pro_dpo.safetensors is for another model"),
    ],
)
def test_a_bad_bundle_says_what_is_wrong_in_one_line(what: str, message: str, folder: Path) -> None:
    damage(what)(folder)
    with pytest.raises(ColorFluxError, match=message) as caught:
        load_bundle(folder)
    assert "\n" not in str(caught.value)


def test_a_device_that_is_not_there(whole: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is one")
    with pytest.raises(ColorFluxError, match="device cuda"):
        load_bundle(whole, device="cuda")


# Parts one by one


def test_parts_come_from_pipeline_folders_and_from_their_own(whole: Path) -> None:
    base, lora = load_bundle(whole), whole / LORA
    parts: dict[str, Any] = {"transformer": whole, "vae": whole / "vae", "image_encoder": whole}
    parts |= {"image_embedder": whole / "image_embedder", "controlnet": whole / "controlnet"}
    result = assemble(**parts, lora=lora, lora_scale=0.5)
    assert result.settings == Settings(lora_scale=0.5)
    same = Bundle(result.pipeline, base.settings)
    assert torch.equal(picture(same), picture(base))


def test_parts_come_from_single_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pipeline = tiny_pipeline("siglip", tiny_controlnet(num_mode=7))
    expected = picture(Bundle(pipeline, SETTINGS), control_mode=5)
    save_bundle(tmp_path, pipeline, SETTINGS)
    monkeypatch.setattr(components, "SIGLIP_SO400M", SIGLIP)
    monkeypatch.setitem(components.SIGLIP_PREPROCESSING, "size", {"height": 32, "width": 32})
    shutil.rmtree(tmp_path / "feature_extractor")
    result = assemble(
        transformer=tmp_path / "transformer" / WEIGHTS,
        vae=tmp_path / "vae",
        image_encoder=tmp_path / "image_encoder" / "model.safetensors",
        image_embedder=tmp_path / "image_embedder" / WEIGHTS,
        controlnet=tmp_path / "controlnet" / WEIGHTS,
    )
    assert result.settings == Settings(control_mode=5)
    assert torch.equal(picture(Bundle(result.pipeline, SETTINGS), control_mode=5), expected)


def test_a_missing_part_is_named(whole: Path) -> None:
    with pytest.raises(ColorFluxError, match="controlnet is missing: nowhere does not exist"):
        assemble(
            transformer=whole,
            vae=whole,
            image_encoder=whole,
            image_embedder=whole,
            controlnet=Path("nowhere"),
        )
