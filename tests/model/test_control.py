from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import FluxControlNetModel
from torch import Tensor

from colorflux_core.errors import ColorFluxError
from colorflux_core.model.control import control_from_transformer
from colorflux_core.model.lora import add_lora
from tests.flux_models import flux_dev, tiny_transformer, transformer_inputs, velocity


def residuals(control: FluxControlNetModel) -> dict[str, list[Tensor] | None]:
    condition = torch.randn(2, 6, 64, generator=torch.Generator().manual_seed(2))
    return dict(control(**transformer_inputs(), controlnet_cond=condition))


def randomise_projections(control: FluxControlNetModel) -> None:
    """As if it had been trained."""
    for name, parameter in control.named_parameters():
        if name.startswith("controlnet_"):
            torch.nn.init.normal_(parameter, std=0.1)


def test_at_step_0_it_adds_exactly_nothing() -> None:
    transformer = tiny_transformer()
    samples = residuals(control_from_transformer(transformer, 2, 4))
    assert [len(s or ()) for s in samples.values()] == [2, 4]
    assert all(torch.all(r == 0) for s in samples.values() for r in s or ())
    assert torch.equal(velocity(transformer, **samples), velocity(transformer))


def test_it_starts_as_a_copy_that_shares_nothing() -> None:
    transformer = tiny_transformer()
    control = control_from_transformer(transformer, 1, 2)
    source = transformer.state_dict()
    for name, copy in control.state_dict().items():
        if not name.startswith("controlnet_"):
            assert torch.equal(copy, source[name])
    pointers = {p.data_ptr() for p in transformer.parameters()}
    assert pointers.isdisjoint(p.data_ptr() for p in control.parameters())


@pytest.mark.parametrize("count", range(1, 7))
def test_counts_are_accepted_when_every_block_is_read(count: int) -> None:
    transformer = tiny_transformer(num_layers=1, num_single_layers=6)
    control = FluxControlNetModel.from_transformer(transformer, 1, count, num_attention_heads=1)
    velocity(transformer, **residuals(control)).sum().backward()
    all_read = all(block.weight.grad is not None for block in control.controlnet_single_blocks)
    if all_read:
        control_from_transformer(transformer, 1, count)
    else:
        with pytest.raises(
            ColorFluxError, match=rf"num_single_layers={count} .* 6 blocks.*: 0, 1, 2, 3, 6\."
        ):
            control_from_transformer(transformer, 1, count)


@pytest.mark.parametrize("counts", [(0, 0), (3, 4), (-1, 4), (2, 5)])
def test_impossible_counts_are_refused(counts: tuple[int, int]) -> None:
    with pytest.raises(ColorFluxError, match=r"num_(single_)?layers"):
        control_from_transformer(tiny_transformer(), *counts)


@pytest.mark.parametrize("counts", [(0, 2), (1, 0)])
def test_one_kind_of_block_is_enough(counts: tuple[int, int]) -> None:
    transformer = tiny_transformer()
    control = control_from_transformer(transformer, *counts)
    randomise_projections(control)
    assert not torch.equal(velocity(transformer, **residuals(control)), velocity(transformer))


def test_a_transformer_with_a_lora_is_refused() -> None:
    transformer = tiny_transformer()
    add_lora(transformer, rank=2)
    with pytest.raises(ColorFluxError, match="LoRA"):
        control_from_transformer(transformer, 2, 4)


def test_it_takes_the_transformers_dtype() -> None:
    control = control_from_transformer(tiny_transformer().bfloat16(), 2, 4)
    assert {p.dtype for p in control.parameters()} == {torch.bfloat16}


def test_a_saved_one_loads_in_stock_diffusers(tmp_path: Path) -> None:
    control = control_from_transformer(tiny_transformer(), 1, 2)
    randomise_projections(control)
    control.save_pretrained(tmp_path)
    loaded = FluxControlNetModel.from_pretrained(tmp_path)
    ours, theirs = residuals(control), residuals(loaded)
    for kind, samples in ours.items():
        assert all(map(torch.equal, samples or (), theirs[kind] or ()))


def test_the_papers_control_net_has_2953_million_parameters() -> None:
    transformer = flux_dev()
    with torch.device("meta"):
        control = control_from_transformer(transformer)
    assert round(control.num_parameters() / 1e6) == 2953
    assert len(control.controlnet_blocks) == 4
    assert len(control.controlnet_single_blocks) == 10
    assert control.controlnet_x_embedder.weight.shape == (3072, 64)
