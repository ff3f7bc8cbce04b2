"""``--plan``: a fake step counts what a real one does, and what is advised fits."""

from __future__ import annotations

import math
import re
import shutil
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from colorflux_core.errors import ColorFluxError
from tests.flux_models import tiny_transformer
from tests.nano_models import tiny_controlnet
from tests.training.tiny_training import CANVAS, Setup, make_setup
from training.basic_color import BasicColorStage
from training.models.blocks import blocks
from training.models.parts import Parts
from training.plan.footprint import MemoryCounter, emulate_cuda_norms, step_memory
from training.plan.plan import GIB, RESERVE, Plan, copied_loss, make_plan, print_plan
from training.pro_dpo import ProDpoStage
from training.structure import StructureStage

STAGES: dict[str, Any] = {
    "structure": StructureStage,
    "basic_color": BasicColorStage,
    "pro_dpo": ProDpoStage,
}


@pytest.fixture(scope="module")
def setup(tmp_path_factory: pytest.TempPathFactory) -> Setup:
    """The smallest base there is: as many double blocks as single ones, one."""
    setup = make_setup(tmp_path_factory.mktemp("plan"))
    tiny_transformer(1, 1).save_pretrained(setup.folder / "base" / "transformer")
    tiny_controlnet(num_single_layers=1).save_pretrained(setup.folder / "base" / "controlnet")
    return setup


@pytest.fixture(scope="module")
def plan(setup: Setup) -> Any:
    """Plans by stage, number of processes and settings."""

    @cache
    def planned(name: str, processes: int = 1, limit: float = math.inf, **changes: Any) -> Plan:
        config = make_config(setup, name, **changes)
        return make_plan(config, STAGES[name], processes, limit)

    return planned


def make_config(setup: Setup, name: str, **changes: Any) -> Any:
    few = {"double_blocks": 1, "single_blocks": 1} if name == "structure" else {}
    half = {"precision": "bf16", "frozen": "bfloat16"}
    return replace(setup.config(name, setup.folder / "run"), **half | few | changes)


def test_memory_counts_what_is_alive() -> None:
    weight = torch.zeros(1000)
    with MemoryCounter([weight]) as memory:
        tensor = torch.zeros(250)
        view, other = tensor[:10], weight.view(10, 100)
        assert memory.bytes == 1000
        twice = tensor * 2
        del tensor
        assert memory.bytes == 2000, "the view keeps its storage"
        del view, twice, other
    assert (memory.bytes, memory.peak) == (0, 2000)


@pytest.mark.parametrize(
    ("name", "checkpointing"),
    [("structure", False), ("basic_color", True), ("pro_dpo", False), ("pro_dpo", True)],
)
def test_a_fake_step_counts_what_a_real_one_does(
    name: str, checkpointing: bool, setup: Setup, plan: Any
) -> None:
    config = make_config(setup, name, gradient_checkpointing=checkpointing)
    stage = STAGES[name](config, Parts(config))
    batch = stage.blank(config.batch_size)
    models = [module for module in vars(stage).values() if isinstance(module, nn.Module)]
    weights = dict.fromkeys(weight for model in models for weight in model.parameters())
    with emulate_cuda_norms():
        real = step_memory(weights, lambda: copied_loss(stage, batch), torch.bfloat16, False)
    training = plan(name, gradient_checkpointing=checkpointing).phases["training"]
    assert real == (training["gradients"], training["activations"])


def test_norms_of_cuda_give_float32_under_autocast() -> None:
    x, weight = torch.randn(2, 8, dtype=torch.bfloat16), torch.ones(8, dtype=torch.bfloat16)
    norms = [
        lambda: F.layer_norm(x, (8,), weight),
        lambda: F.rms_norm(x, (8,), weight),
        lambda: F.group_norm(x, 2, weight),
    ]
    with torch.autocast("cpu", torch.bfloat16):
        with emulate_cuda_norms():
            assert {norm().dtype for norm in norms} == {torch.float32}
        assert {norm().dtype for norm in norms} == {torch.bfloat16}
    with emulate_cuda_norms():
        assert {norm().dtype for norm in norms} == {torch.bfloat16}


def test_checkpointing_keeps_the_input_of_each_block(setup: Setup, tmp_path: Path) -> None:
    base = tmp_path / "base"
    shutil.copytree(setup.folder / "base", base, ignore=shutil.ignore_patterns("*.safetensors"))
    config = make_config(setup, "basic_color", base=base, gradient_checkpointing=True)
    kept = []
    for depth in (1, 2):
        tiny_transformer(1, depth).save_config(base / "transformer")
        kept.append(make_plan(config, BasicColorStage).phases["training"]["activations"])
    # Where a residual is added, image tokens are made anew, and the prompt's are a view of what a
    # block gave for both.
    prompt, image = 2 + 16, CANVAS**2 // 256
    rows, tokens, width, half = 4, prompt + 2 * image, 128, 2
    assert kept[1] - kept[0] == rows * tokens * width * half


def test_micro_batches_keep_all_gradients(plan: Any) -> None:
    at_once = plan("structure", gradient_checkpointing=False).phases["training"]
    in_two = plan("structure", micro_batch=2).phases["training"]
    assert in_two["gradients"] == in_two["trained weights"]
    assert at_once["gradients"] < at_once["trained weights"]


def test_what_is_held_for_each_trained_weight(plan: Any) -> None:
    averaged = plan("structure", limit=0, ema_decay=0.9)
    number = sum(group.count for group in averaged.weights if group.trained)
    held = averaged.phases["training"]
    assert held["trained weights"] == held["moving average"] == 4 * number
    assert held["optimizer"] == 8 * number
    assert averaged.checkpoint_bytes == 16 * number
    in_8_bits = plan("structure", limit=0, optimizer="adamw8bit").phases["training"]
    assert 2 * number < in_8_bits["optimizer"] < 2.1 * number
    assert in_8_bits["moving average"] == 0


def test_packed_weights_are_counted_as_weights(plan: Any) -> None:
    plain, packed = (
        next(
            group
            for group in plan("pro_dpo", limit=0, frozen=how).weights
            if group.part == "transformer"
        )
        for how in ("bfloat16", "fp8")
    )
    assert (plain.storage, packed.storage) == ("bfloat16", "fp8")
    assert plain.count == packed.count
    assert 0.5 < packed.bytes / plain.bytes < 0.6


def test_offloaded_blocks_wait_elsewhere(setup: Setup, plan: Any) -> None:
    near, far = (plan("pro_dpo", limit=0, offload=offload) for offload in (False, True))
    parts = Parts(make_config(setup, "pro_dpo"), weights=False)
    models = [parts.frozen(name) for name in ("transformer", "controlnet")]
    sizes = [[sum(w.nbytes for w in block.parameters()) for block in blocks(m)] for m in models]
    assert far.offloaded_bytes == sum(map(sum, sizes))
    visiting = max(sizes[0]) + max(sizes[1]) + max(sizes[0] + sizes[1])
    all_of_it, some = (p.phases["training"]["frozen weights"] for p in (near, far))
    assert some == all_of_it - far.offloaded_bytes + visiting


def test_offloading_brings_checkpointing(plan: Any) -> None:
    far, near = (plan("pro_dpo", **{flag: True}) for flag in ("offload", "gradient_checkpointing"))
    assert far.phases["training"]["activations"] == near.phases["training"]["activations"]


def test_devices_share_what_is_sharded(plan: Any) -> None:
    alone, copied = (plan("structure", n, limit=0).phases["training"] for n in (1, 2))
    assert copied == alone | {"gradients to send": alone["trained weights"]}
    shared = plan("structure", 2, limit=0, shard=True).phases["training"]
    assert shared["frozen weights"] == alone["frozen weights"]
    assert shared["trained weights"] == alone["trained weights"] // 2
    assert shared["optimizer"] == alone["optimizer"] // 2


def test_shards_keep_whole_gradients_between_micro_batches(plan: Any) -> None:
    between, at_once = (plan("structure", n, micro_batch=1, shard=True) for n in (2, 4))
    full_size = between.phases["training"]["trained weights"] * 2
    assert between.phases["training"]["gradients"] == full_size
    assert at_once.phases["training"]["gradients"] <= full_size // 4


def test_distillation_alone_needs_neither_flux_nor_vae(plan: Any) -> None:
    alone = plan("basic_color", loss="distill")
    assert {group.part for group in alone.weights} == {"image_embedder"}
    assert [*alone.phases] == ["training"]


def test_a_plan_reads_no_weights(
    setup: Setup, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = tmp_path / "base"
    shutil.copytree(setup.folder / "base", base, ignore=shutil.ignore_patterns("*.safetensors"))
    config = make_config(setup, "pro_dpo", base=base, output=tmp_path / "run")
    print_plan(config, ProDpoStage)
    printed = capsys.readouterr().out
    for expected in ("transformer, frozen", "transformer, trained", "activations", "peak"):
        assert expected in printed
    assert not config.output.exists()


def test_one_machine_plans_for_several(setup: Setup, capsys: pytest.CaptureFixture[str]) -> None:
    print_plan(make_config(setup, "structure", micro_batch=1, devices=2), StructureStage)
    assert "on each of 2 devices" in capsys.readouterr().out


def test_what_does_not_fit_is_refused_with_what_would(
    setup: Setup, plan: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    needless, enough = ("optimizer", "adamw8bit"), ("gradient_checkpointing", True)
    monkeypatch.setattr("training.plan.plan.REMEDIES", (needless, enough))
    memory = plan("basic_color", gradient_checkpointing=True).peak / GIB
    config = make_config(setup, "basic_color", memory=memory)
    with pytest.raises(ColorFluxError, match="this needs") as refusal:
        print_plan(config, BasicColorStage)
    assert re.findall(r"--[\w-]+ \w+", str(refusal.value)) == ["--gradient-checkpointing true"]
    with pytest.raises(ColorFluxError, match="use a larger device"):
        print_plan(replace(config, memory=RESERVE / GIB), BasicColorStage)
