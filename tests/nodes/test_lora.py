"""Load Pro-DPO LoRA: every known key style loads wholly, everything else is refused in words."""

# ruff: noqa: E402  ComfyUI's modules are there only once need_comfyui has found them.

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.nodes.node_runs import refused, run
from tests.nodes.pack import need_comfyui

need_comfyui()

from comfy.model_patcher import ModelPatcher

from colorflux_core.bundles.bundle_config import EMBEDDED_NANO
from tests.nodes.comfy_models import flux_dev, lora_deltas, nano, use_folder

State = dict[str, Tensor]
FILE = "other.safetensors"
WIDTH = 256  # nano's
TO_Q = "transformer.transformer_blocks.0.attn.to_q"


@pytest.fixture(scope="module")
def original() -> State:
    """Nano's own LoRA, as our trainer wrote it."""
    return load_file(EMBEDDED_NANO / "pro_dpo.safetensors")


@pytest.fixture
def loras(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty models/loras."""
    use_folder(monkeypatch, "loras", tmp_path)
    return tmp_path


def loaded(model: ModelPatcher, strength: float = 1.0) -> dict[str, Tensor]:
    """What the node's LoRA adds to the weights."""
    (patched,) = run("ColorFlux_LoadProDPOLoRA", model=model, lora=FILE, strength=strength)
    return lora_deltas(patched)


def assert_close(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for key, delta in expected.items():
        close_to_zero = 1e-5 * delta.abs().max().item()
        torch.testing.assert_close(found[key], delta, rtol=1e-5, atol=close_to_zero)


@pytest.fixture(scope="module")
def expected(original: State) -> dict[str, Tensor]:
    """B A of nano's LoRA by ComfyUI's layers, in which q, k and v are one."""

    def product(module: str) -> Tensor:
        name = f"transformer.{module}"
        a, b = original[f"{name}.lora_A.weight"], original[f"{name}.lora_B.weight"]
        return b.float() @ a.float()

    def stacked(block: str, *modules: str) -> Tensor:
        return torch.cat([product(f"{block}.{module}") for module in modules])

    block = "transformer_blocks.0"
    deltas = {
        "double_blocks.0.img_attn.qkv": stacked(block, "attn.to_q", "attn.to_k", "attn.to_v"),
        "double_blocks.0.txt_attn.qkv": stacked(
            block, "attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"
        ),
        "double_blocks.0.img_attn.proj": product(f"{block}.attn.to_out.0"),
        "double_blocks.0.txt_attn.proj": product(f"{block}.attn.to_add_out"),
        "double_blocks.0.img_mlp.0": product(f"{block}.ff.net.0.proj"),
        "double_blocks.0.img_mlp.2": product(f"{block}.ff.net.2"),
        "double_blocks.0.txt_mlp.0": product(f"{block}.ff_context.net.0.proj"),
        "double_blocks.0.txt_mlp.2": product(f"{block}.ff_context.net.2"),
    }
    for i in range(4):
        block = f"single_transformer_blocks.{i}"
        deltas[f"single_blocks.{i}.linear1"] = stacked(
            block, "attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"
        )
        deltas[f"single_blocks.{i}.linear2"] = product(f"{block}.proj_out")
    return {f"diffusion_model.{key}.weight": delta for key, delta in deltas.items()}


RENAMED: dict[str, Callable[[str], str]] = {
    "diffusers": lambda key: key,
    "bare": lambda key: key.removeprefix("transformer."),
    "peft": lambda key: f"base_model.model.{key.removeprefix('transformer.')}",
    "peft, whole pipeline": lambda key: f"base_model.model.{key}",
    "named adapter": lambda key: key.replace(".weight", ".default.weight"),
}


@pytest.mark.parametrize("style", RENAMED)
@pytest.mark.parametrize("strength", [1.0, -0.4])
def test_every_style_adds_b_a(
    loras: Path, original: State, expected: dict[str, Tensor], style: str, strength: float
) -> None:
    save_file({RENAMED[style](key): w for key, w in original.items()}, loras / FILE)
    found = loaded(nano(0.0).model, strength)
    assert_close(found, {key: strength * delta for key, delta in expected.items()})


@pytest.mark.parametrize("factor", [None, 0.5, 4.0])
def test_alpha_scales(
    loras: Path, original: State, expected: dict[str, Tensor], factor: float | None
) -> None:
    """Alpha other than rank; without it, alpha is the rank."""
    alphas = {key: w for key, w in original.items() if key.endswith(".alpha")}
    given = {} if factor is None else {key: factor * alpha for key, alpha in alphas.items()}
    weights = {key: w for key, w in original.items() if key not in alphas}
    save_file(weights | given, loras / FILE)
    scale = factor or 1.0
    assert_close(loaded(nano(0.0).model), {key: scale * delta for key, delta in expected.items()})


def test_layers_beyond_the_paper_s(loras: Path) -> None:
    """LoRAs of all linear layers; ComfyUI holds the last one's scale and shift the other way."""
    shapes = {
        "x_embedder": (WIDTH, 64),
        "context_embedder": (WIDTH, WIDTH),
        "time_text_embed.guidance_embedder.linear_1": (WIDTH, 256),
        "transformer_blocks.0.norm1.linear": (6 * WIDTH, WIDTH),
        "single_transformer_blocks.3.norm.linear": (3 * WIDTH, WIDTH),
        "norm_out.linear": (2 * WIDTH, WIDTH),
        "proj_out": (64, WIDTH),
    }
    random = torch.Generator().manual_seed(0)
    state: State = {}
    products: State = {}
    for module, (rows, columns) in shapes.items():
        a, b = torch.randn(2, columns, generator=random), torch.randn(rows, 2, generator=random)
        state |= {
            f"transformer.{module}.lora_A.weight": a,
            f"transformer.{module}.lora_B.weight": b,
        }
        products[module] = b @ a
    save_file(state, loras / FILE)
    scale, shift = products["norm_out.linear"].chunk(2)
    assert_close(
        loaded(nano(0.0).model),
        {
            "diffusion_model.img_in.weight": products["x_embedder"],
            "diffusion_model.txt_in.weight": products["context_embedder"],
            "diffusion_model.guidance_in.in_layer.weight": products[
                "time_text_embed.guidance_embedder.linear_1"
            ],
            "diffusion_model.double_blocks.0.img_mod.lin.weight": products[
                "transformer_blocks.0.norm1.linear"
            ],
            "diffusion_model.single_blocks.3.modulation.lin.weight": products[
                "single_transformer_blocks.3.norm.linear"
            ],
            "diffusion_model.final_layer.adaLN_modulation.1.weight": torch.cat([shift, scale]),
            "diffusion_model.final_layer.linear.weight": products["proj_out"],
        },
    )


def test_kohya_file_is_as_stock_lora_loads_it(loras: Path) -> None:
    """At full width, the only one that kohya's fused layers are taken apart at."""
    random = torch.Generator().manual_seed(0)
    shapes = {
        "double_blocks_0_img_attn_qkv": (9216, 3072),
        "double_blocks_0_txt_mlp_0": (12288, 3072),
        "single_blocks_0_linear1": (21504, 3072),
        "single_blocks_0_linear2": (3072, 15360),
    }
    state = {}
    for name, (rows, columns) in shapes.items():
        state[f"lora_unet_{name}.lora_down.weight"] = torch.randn(4, columns, generator=random)
        state[f"lora_unet_{name}.lora_up.weight"] = torch.randn(rows, 4, generator=random)
        state[f"lora_unet_{name}.alpha"] = torch.tensor(3.0)
    save_file(state, loras / FILE)
    model = flux_dev()
    (stocks,) = run("LoraLoaderModelOnly", model=model, lora_name=FILE, strength_model=0.7)
    assert_close(loaded(model, 0.7), lora_deltas(stocks))


def without(state: State, key: str) -> State:
    return {k: v for k, v in state.items() if k != key}


REFUSED: dict[str, tuple[Callable[[State], State], tuple[str, ...]]] = {
    "A without B": (lambda s: without(s, f"{TO_Q}.lora_B.weight"), ("attn.to_q", "A and B")),
    "B without A": (lambda s: without(s, f"{TO_Q}.lora_A.weight"), ("attn.to_q", "A and B")),
    "a deeper model": (
        lambda s: {k.replace("blocks.0.", "blocks.18."): v for k, v in s.items()},
        ("another model", "blocks.18."),
    ),
    "a wider model": (
        lambda s: (
            s
            | {
                f"{TO_Q}.lora_A.weight": torch.ones(1, 3072),
                f"{TO_Q}.lora_B.weight": torch.ones(3072, 1),
            }
        ),
        ("another model", "attn.to_q", "3072x3072", "256x256"),
    ),
    "a wider text": (
        lambda s: {
            "transformer.context_embedder.lora_A.weight": torch.ones(1, 4096),
            "transformer.context_embedder.lora_B.weight": torch.ones(WIDTH, 1),
        },
        ("another model", "context_embedder", "256x4096"),
    ),
    "Stable Diffusion, kohya": (
        lambda s: {
            "lora_unet_mid_block_attn_to_q.lora_down.weight": torch.ones(1, 8),
            "lora_unet_mid_block_attn_to_q.lora_up.weight": torch.ones(8, 1),
        },
        ("cannot be used",),
    ),
    "Stable Diffusion, diffusers": (
        lambda s: {
            "unet.mid_block.attentions.0.proj_in.lora_A.weight": torch.ones(1, 8),
            "unet.mid_block.attentions.0.proj_in.lora_B.weight": torch.ones(8, 1),
        },
        ("another model", "mid_block"),
    ),
    "a text encoder's part": (
        lambda s: s | {"lora_te1_text_model_q.lora_down.weight": torch.ones(1, 8)},
        ("lora_te1", "ignored"),
    ),
    "DoRA": (lambda s: s | {f"{TO_Q}.dora_scale": torch.ones(WIDTH)}, ("dora_scale",)),
    "LoKr": (lambda s: {"lycoris_x.lokr_w1": torch.ones(4, 4)}, ("lokr_w1",)),
    "not finite": (
        lambda s: s | {f"{TO_Q}.lora_B.weight": torch.full((WIDTH, 8), torch.nan)},
        ("NaN",),
    ),
    "no LoRA": (lambda s: {"img_in.weight": torch.ones(4, 4)}, ("img_in.weight",)),
    "nothing in it": (lambda s: {}, ("no weights",)),
}


@pytest.mark.parametrize("fault", REFUSED)
def test_what_does_not_fit_is_refused(loras: Path, original: State, fault: str) -> None:
    spoil, words = REFUSED[fault]
    save_file({key: w.contiguous() for key, w in spoil(original).items()}, loras / FILE)
    model = nano(0.0).model
    with refused("Load Pro-DPO LoRA", FILE, *words):
        loaded(model)
    assert not model.patches


@pytest.mark.parametrize(
    "content",
    [b"", b"no safetensors", pickle.dumps({"transformer.x": 1}), b"<!DOCTYPE html><html></html>"],
)
def test_unreadable_files_are_refused(loras: Path, content: bytes) -> None:
    (loras / FILE).write_bytes(content)
    with refused("Load Pro-DPO LoRA", FILE, "Cannot read"):
        loaded(nano(0.0).model)


def test_a_download_that_broke_off_is_refused(loras: Path) -> None:
    whole = (EMBEDDED_NANO / "pro_dpo.safetensors").read_bytes()
    (loras / FILE).write_bytes(whole[: len(whole) // 2])
    with refused("Load Pro-DPO LoRA", FILE, "Cannot read"):
        loaded(nano(0.0).model)


def test_a_lora_of_nano_does_not_fit_flux_dev(loras: Path, original: State) -> None:
    save_file(original, loras / FILE)
    with refused("Load Pro-DPO LoRA", FILE, "another model", "256x256", "3072x3072"):
        loaded(flux_dev())
