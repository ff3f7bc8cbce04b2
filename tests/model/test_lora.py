from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel
from peft import LoraConfig, get_peft_model_state_dict
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from colorflux_core.errors import ColorFluxError
from colorflux_core.model.lora import (
    add_lora,
    load_lora,
    load_lora_state,
    merge_lora,
    normalise,
    reference_policy,
    save_lora,
)
from tests.flux_models import flux_dev, tiny_transformer, velocity

RANK = 4
State = dict[str, Tensor]


def trained_transformer() -> FluxTransformer2DModel:
    """With a LoRA that does something."""
    transformer = tiny_transformer()
    random = torch.Generator().manual_seed(3)
    for parameter in add_lora(transformer, RANK):
        parameter.data.normal_(std=0.1, generator=random)
    return transformer


@pytest.fixture(scope="module")
def tuned() -> Tensor:
    """What the model with the LoRA says."""
    with torch.no_grad():
        return velocity(trained_transformer())


@pytest.fixture
def lora_file(tmp_path: Path) -> Path:
    path = tmp_path / "pro_dpo.safetensors"
    save_lora(trained_transformer(), path, {"trained_on": "photos"})
    return path


def loaded(path: Path, scale: float = 1.0) -> Tensor:
    transformer = tiny_transformer()
    load_lora(transformer, path, scale)
    with torch.no_grad():
        return velocity(transformer)


def test_counts_on_flux_dev() -> None:
    transformer = flux_dev()
    parameters = add_lora(transformer)
    assert len(parameters) == 2 * 418
    assert sum(p.numel() for p in parameters) == 130_744_320
    assert sum(p.numel() for p in transformer.parameters() if p.requires_grad) == 130_744_320


def test_modules_and_shapes_at_full_width() -> None:
    width, hidden, rank = 3072, 4 * 3072, 32
    square = (width, width)
    double: dict[str, tuple[int, int]] = {
        **dict.fromkeys(("attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0"), square),
        **dict.fromkeys(("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"), square),
        "attn.to_add_out": square,
        "ff.net.0.proj": (hidden, width),
        "ff.net.2": (width, hidden),
        "ff_context.net.0.proj": (hidden, width),
        "ff_context.net.2": (width, hidden),
    }
    single = {
        **dict.fromkeys(("attn.to_q", "attn.to_k", "attn.to_v"), square),
        "proj_mlp": (hidden, width),
        "proj_out": (width, width + hidden),
    }
    expected = {}
    for block, modules in {
        "transformer_blocks": double,
        "single_transformer_blocks": single,
    }.items():
        for module, (rows, columns) in modules.items():
            expected[f"{block}.0.{module}.lora_A.weight"] = (rank, columns)
            expected[f"{block}.0.{module}.lora_B.weight"] = (rows, rank)
    transformer = flux_dev(num_layers=1, num_single_layers=1)
    add_lora(transformer, rank)
    state = get_peft_model_state_dict(transformer, adapter_name="pro_dpo")
    assert {key: tuple(weight.shape) for key, weight in state.items()} == expected


def test_a_fresh_one_changes_nothing_and_trains_alone_in_float32() -> None:
    transformer = tiny_transformer()
    before = velocity(transformer)
    parameters = add_lora(transformer, RANK)
    assert torch.equal(velocity(transformer), before)
    velocity(transformer).sum().backward()
    assert {id(p) for p in parameters} == {
        id(p) for p in transformer.parameters() if p.grad is not None
    }
    half = tiny_transformer().bfloat16()
    assert {p.dtype for p in add_lora(half, RANK)} == {torch.float32}


def test_the_reference_policy_is_the_base_bit_for_bit() -> None:
    transformer = trained_transformer()
    with reference_policy(transformer):
        assert torch.equal(velocity(transformer), velocity(tiny_transformer()))
    with pytest.raises(KeyError), reference_policy(transformer):
        raise KeyError
    assert torch.equal(velocity(transformer), velocity(trained_transformer()))


def test_a_reference_pass_does_not_cost_the_policy_its_gradient() -> None:
    def gradients(with_reference: bool) -> list[Tensor | None]:
        transformer = trained_transformer()
        loss = velocity(transformer).square().sum()
        if with_reference:
            with torch.no_grad(), reference_policy(transformer):
                velocity(transformer)
        loss.backward()
        return [p.grad for p in transformer.parameters() if p.requires_grad]

    alone, together = gradients(False), gradients(True)
    assert len(alone) == len(together) == 88
    for one, other in zip(alone, together, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


def test_the_file_names_every_module_with_alpha_equal_to_rank(lora_file: Path) -> None:
    state = load_file(lora_file)
    modules = {key.removesuffix(".alpha") for key in state if key.endswith(".alpha")}
    assert len(modules) == 2 * 12 + 4 * 5
    assert set(state) == {
        f"{module}.{part}"
        for module in modules
        for part in ("alpha", "lora_A.weight", "lora_B.weight")
    }
    assert all(module.split(".")[1].endswith("transformer_blocks") for module in modules)
    assert {state[f"{module}.alpha"].item() for module in modules} == {RANK}
    with safe_open(lora_file, framework="pt") as file:
        assert file.metadata()["trained_on"] == "photos"


def test_saved_and_loaded_again_it_says_the_same(lora_file: Path, tuned: Tensor) -> None:
    assert torch.equal(loaded(lora_file), tuned)
    assert torch.equal(loaded(lora_file, scale=0.0), velocity(tiny_transformer()))


def test_it_continues_from_a_file(lora_file: Path, tuned: Tensor) -> None:
    transformer = tiny_transformer()
    parameters = add_lora(transformer, start=lora_file)
    assert torch.equal(velocity(transformer), tuned)
    assert len(parameters) == 88


def test_continuing_on_a_half_precision_base_rounds_nothing(lora_file: Path) -> None:
    transformer = tiny_transformer().bfloat16()
    add_lora(transformer, start=lora_file)
    again = lora_file.with_name("again.safetensors")
    save_lora(transformer, again)
    before, after = load_file(lora_file), load_file(again)
    assert all(torch.equal(after[key], weight) for key, weight in before.items())


def pipeline_of(transformer: FluxTransformer2DModel) -> FluxPipeline:
    return FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=None,
        text_encoder=None,
        tokenizer=None,
        text_encoder_2=None,
        tokenizer_2=None,
        transformer=transformer,
    )


@pytest.mark.parametrize("whole_pipeline", [True, False])
def test_stock_diffusers_reads_the_file(
    lora_file: Path, tuned: Tensor, whole_pipeline: bool
) -> None:
    transformer = tiny_transformer()
    if whole_pipeline:
        pipeline_of(transformer).load_lora_weights(lora_file.parent, weight_name=lora_file.name)
    else:
        transformer.load_lora_adapter(lora_file, prefix="transformer")
    torch.testing.assert_close(velocity(transformer), tuned, rtol=0, atol=1e-6)


@pytest.mark.parametrize("alpha", [1, RANK, 16])
def test_alpha_in_diffusers_header_counts(tmp_path: Path, alpha: int) -> None:
    transformer = tiny_transformer()
    config = LoraConfig(
        r=RANK,
        lora_alpha=alpha,
        init_lora_weights=False,
        target_modules=["to_q", "ff.net.2"],
        alpha_pattern={"transformer_blocks.1.ff.net.2": 3},
    )
    transformer.add_adapter(config)
    transformer.save_lora_adapter(tmp_path, weight_name="a.safetensors")
    pipeline_of(transformer).save_lora_weights(
        tmp_path,
        weight_name="b.safetensors",
        transformer_lora_layers=get_peft_model_state_dict(transformer, adapter_name="default"),
        transformer_lora_adapter_metadata=config.to_dict(),
    )
    for name in ("a.safetensors", "b.safetensors"):
        torch.testing.assert_close(loaded(tmp_path / name), velocity(transformer))


@pytest.mark.parametrize("scale", [1.0, 0.6, -0.5])
@pytest.mark.parametrize("occupied", [False, True])
def test_merged_is_unmerged(lora_file: Path, scale: float, occupied: bool) -> None:
    transformer = tiny_transformer()
    if occupied:
        add_lora(transformer, rank=2, adapter_name="other")
    merge_lora(transformer, lora_file, scale)
    torch.testing.assert_close(velocity(transformer), loaded(lora_file, scale), rtol=0, atol=1e-5)


RENAMED: dict[str, Callable[[str], str]] = {
    "bare": lambda key: key.removeprefix("transformer."),
    "peft": lambda key: f"base_model.model.{key.removeprefix('transformer.')}",
    "peft, whole pipeline": lambda key: f"base_model.model.{key}",
    "named adapter": lambda key: key.replace(".weight", ".default.weight"),
}


@pytest.mark.parametrize("style", RENAMED)
def test_other_key_styles_load_wholly(lora_file: Path, tuned: Tensor, style: str) -> None:
    state = {RENAMED[style](key): weight for key, weight in load_file(lora_file).items()}
    save_file(state, lora_file)
    assert torch.equal(loaded(lora_file), tuned)


@pytest.mark.parametrize("alpha", [None, 1.0, 2.0 * RANK])
def test_alpha_is_folded_into_the_weights(lora_file: Path, alpha: float | None) -> None:
    expected = loaded(lora_file, 1.0 if alpha is None else alpha / RANK)
    state = {key: w for key, w in load_file(lora_file).items() if not key.endswith(".alpha")}
    if alpha is not None:
        for key in [key for key in state if key.endswith("lora_A.weight")]:
            state[key.replace("lora_A.weight", "alpha")] = torch.tensor(alpha)
    save_file(state, lora_file)
    torch.testing.assert_close(loaded(lora_file), expected, rtol=0, atol=1e-6)


def test_kohya_files_are_split_into_diffusers_modules() -> None:
    width, alpha = 3072, 3.0
    rows = {"attn.to_q": width, "attn.to_k": width, "attn.to_v": width, "proj_mlp": 4 * width}
    down, up = torch.randn(RANK, width), torch.randn(7 * width, RANK)
    name = "lora_unet_single_blocks_0_linear1"
    state = normalise(
        {
            f"{name}.lora_down.weight": down,
            f"{name}.lora_up.weight": up,
            f"{name}.alpha": torch.tensor(alpha),
        }
    )
    products = [
        state[f"transformer.single_transformer_blocks.0.{module}.lora_B.weight"]
        @ state[f"transformer.single_transformer_blocks.0.{module}.lora_A.weight"][:, :8]
        for module in rows
    ]
    assert len(state) == 2 * len(rows)
    assert [len(product) for product in products] == list(rows.values())
    torch.testing.assert_close(torch.cat(products), alpha / RANK * up @ down[:, :8])


TO_Q = "transformer.transformer_blocks.0.attn.to_q"


def without(state: State, key: str) -> State:
    return {k: v for k, v in state.items() if k != key}


BAD: dict[str, tuple[Callable[[State], State], str]] = {
    "A without B": (lambda s: without(s, f"{TO_Q}.lora_B.weight"), "both needed"),
    "B without A": (lambda s: without(s, f"{TO_Q}.lora_A.weight"), "both needed"),
    "alpha alone": (lambda s: {f"{TO_Q}.alpha": torch.tensor(1.0)}, "no weights"),
    "another depth": (
        lambda s: {k.replace("blocks.1.", "blocks.7."): v for k, v in s.items()},
        "another model",
    ),
    "a wider model": (
        lambda s: s | {f"{TO_Q}.lora_A.weight": torch.zeros(RANK, 256)},
        "256, this model is 128x128",
    ),
    "a narrower model": (
        lambda s: s | {f"{TO_Q}.lora_A.weight": torch.zeros(RANK, 64)},
        "64, this model is 128x128",
    ),
    "one module twice": (
        lambda s: s | {f"base_model.model.{k}": v.clone() for k, v in s.items()},
        "occurs twice",
    ),
    "two ranks": (lambda s: s | {f"{TO_Q}.lora_A.weight": torch.zeros(2, 128)}, "do not match"),
    "NaN": (lambda s: s | {f"{TO_Q}.lora_B.weight": torch.full((128, RANK), torch.nan)}, "NaN"),
    "infinity": (lambda s: s | {f"{TO_Q}.alpha": torch.tensor(torch.inf)}, "infinite"),
    "a text encoder's part": (
        lambda s: s | {"text_encoder.layers.0.q.lora_A.weight": torch.zeros(RANK, 8)},
        "text_encoder",
    ),
    "DoRA": (lambda s: s | {f"{TO_Q}.dora_scale": torch.ones(128)}, "dora_scale"),
    "a bias": (lambda s: s | {f"{TO_Q}.lora_B.bias": torch.ones(128)}, "bias"),
    "LoKr": (lambda s: {f"{TO_Q}.lokr_w1": torch.ones(4, 4)}, "lokr_w1"),
    "no LoRA": (lambda s: {"x_embedder.weight": torch.ones(4, 4)}, "x_embedder"),
    "nothing": (lambda s: {}, "no weights"),
    "kohya for another width": (
        lambda s: {
            "lora_unet_single_blocks_0_linear1.lora_down.weight": torch.ones(RANK, 128),
            "lora_unet_single_blocks_0_linear1.lora_up.weight": torch.ones(7 * 128, RANK),
        },
        "diffusers does not know this LoRA format",
    ),
    "kohya for Stable Diffusion": (
        lambda s: {
            "lora_unet_mid_block_attn_to_q.lora_down.weight": torch.ones(RANK, 8),
            "lora_unet_mid_block_attn_to_q.lora_up.weight": torch.ones(8, RANK),
        },
        "diffusers does not know this LoRA format",
    ),
}


@pytest.mark.parametrize("fault", BAD)
@pytest.mark.parametrize("load", [load_lora, merge_lora])
def test_what_does_not_fit_is_refused_and_leaves_the_model_alone(
    lora_file: Path, fault: str, load: Callable[[FluxTransformer2DModel, Path], None]
) -> None:
    spoil, message = BAD[fault]
    save_file(spoil(load_file(lora_file)), lora_file)
    transformer = tiny_transformer()
    with pytest.raises(ColorFluxError, match=message) as refusal:
        load(transformer, lora_file)
    assert lora_file.name in str(refusal.value)
    assert torch.equal(velocity(transformer), velocity(tiny_transformer()))


@pytest.mark.parametrize("content", [b"", b"not a safetensors file", None])
def test_unreadable_files_are_refused(lora_file: Path, content: bytes | None) -> None:
    lora_file.write_bytes(lora_file.read_bytes()[:-100] if content is None else content)
    with pytest.raises(ColorFluxError, match=lora_file.name):
        load_lora_state(lora_file)
    with pytest.raises(ColorFluxError, match=r"missing\.safetensors"):
        load_lora_state(lora_file.with_name("missing.safetensors"))


def test_a_failed_write_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    for place in ("folder", "missing/lora.safetensors", "file/lora.safetensors"):
        with pytest.raises(ColorFluxError, match=place):
            save_lora(trained_transformer(), tmp_path / place)
    assert {path.name for path in tmp_path.iterdir()} == {"folder", "file"}
