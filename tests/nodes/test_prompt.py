"""Redux Visual Prompt: one prompt per frame or one for all, references, texts and empty tokens."""

# ruff: noqa: E402  ComfyUI's modules are there only once need_comfyui has found them.

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.nodes.pack import need_comfyui

need_comfyui()

from comfy.sd import StyleModel

from tests.nodes.comfy_models import nano, visual_prompt

TOKENS, WIDTH = 64, 256  # of nano's visual prompt


def frames(count: int, seed: int = 0) -> Tensor:
    return torch.rand(count, 40, 56, 3, generator=torch.Generator().manual_seed(seed))


def redux(image: Tensor, **options: Any) -> tuple[Tensor, dict[str, Any]]:
    """The tokens of the only item of the conditioning, and its extras."""
    ((tokens, extras),) = visual_prompt(nano(), image, **options)
    return tokens, extras


def prompt(image: Tensor, **options: Any) -> Tensor:
    return redux(image, **options)[0]


def test_every_frame_has_its_own_prompt() -> None:
    together = prompt(frames(3))
    assert together.shape == (3, TOKENS, WIDTH)
    torch.testing.assert_close(together, torch.cat([prompt(f[None]) for f in frames(3)]))
    assert (together[0] - together[1]).abs().max() > 0.1


def test_a_shared_prompt_is_the_mean() -> None:
    shared = prompt(frames(3), frames="one shared prompt")
    torch.testing.assert_close(shared, prompt(frames(3)).mean(dim=0, keepdim=True))


@pytest.mark.parametrize("count", [1, 2])
def test_a_blend_goes_from_the_photo_to_the_reference(count: int) -> None:
    """One reference for all photos, or one for each."""
    reference = frames(count, seed=1)
    photos, others = prompt(frames(2)), prompt(reference)
    assert torch.equal(prompt(frames(2), reference=reference, blend=0.0), photos)
    assert torch.equal(prompt(frames(2), reference=reference, blend=1.0), others.expand_as(photos))
    quarter = prompt(frames(2), reference=reference, blend=0.25)
    torch.testing.assert_close(quarter, 0.75 * photos + 0.25 * others)


def test_a_blend_without_a_reference_changes_nothing() -> None:
    assert torch.equal(prompt(frames(1), blend=0.5), prompt(frames(1)))


def test_empty_tokens_are_as_many_as_the_bundle_s_or_512() -> None:
    c_v = prompt(frames(1))
    assert nano().style_model.text_tokens == 0
    for options, count in (
        ({}, 0),
        ({"text_tokens": 7}, 7),
        ({"style_model": StyleModel(nano().style_model.model)}, 512),
        ({"style_model": StyleModel(nano().style_model.model), "text_tokens": 0}, 0),
    ):
        tokens, extras = redux(frames(1), **options)
        assert not tokens[:, :count].any()
        assert torch.equal(tokens[:, count:], c_v)
        assert not extras["pooled_output"].any()


def test_strength_0_leaves_empty_tokens_only() -> None:
    assert torch.equal(prompt(frames(2), strength=0.0, text_tokens=5), torch.zeros(2, 5, WIDTH))
    # ComfyUI's blocks cannot do without any.
    assert torch.equal(prompt(frames(1), strength=0.0), torch.zeros(1, 1, WIDTH))


@pytest.mark.parametrize(("texts", "photos"), [(1, 3), (3, 1), (3, 3)])
def test_one_text_serves_for_all_photos_and_one_photo_for_all_texts(
    texts: int, photos: int
) -> None:
    rows = torch.randn(texts, 4, WIDTH, generator=torch.Generator().manual_seed(0))
    text = [[rows, {"pooled_output": torch.ones(texts, 768)}]]
    tokens, extras = redux(frames(photos), text=text, text_tokens=9)
    assert torch.equal(tokens[:, :4], rows.expand(3, -1, -1))
    assert torch.equal(tokens[:, 4:], prompt(frames(photos)).expand(3, -1, -1))
    assert extras["pooled_output"].all()
