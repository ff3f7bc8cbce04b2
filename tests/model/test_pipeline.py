from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from diffusers import (
    FlowMatchEulerDiscreteScheduler,
    FluxControlNetPipeline,
    FluxPriorReduxPipeline,
    FluxTransformer2DModel,
)
from diffusers.pipelines.flux.modeling_flux import ReduxImageEncoder
from PIL import Image
from torch import Tensor, nn

from colorflux_core.bundles.components import FLUX_SCHEDULE
from colorflux_core.errors import ColorFluxError
from colorflux_core.model.control import control_from_transformer
from colorflux_core.model.lora import add_lora, save_lora
from colorflux_core.model.pipeline import ColorFluxPipeline
from colorflux_core.model.settings import UNION_GRAY_MODE
from colorflux_core.model.visual_prompt import visual_prompt
from colorflux_core.photos.color import grayscale
from tests.nano_models import tiny_controlnet, tiny_pipeline

STEPS = 2


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def photos(count: int = 1) -> Tensor:
    return torch.rand(count, 3, 32, 48, generator=seeded(9))


def run(pipeline: ColorFluxPipeline, photo: Any = None, **options: Any) -> Tensor:
    """The result for a 32 x 48 photo from seed 0 in a few steps after 3 text tokens."""
    defaults = {"num_inference_steps": STEPS, "text_tokens": 3, "generator": seeded()}
    return pipeline(photos() if photo is None else photo, **{**defaults, **options}).images


def trajectory(pipeline: ColorFluxPipeline, *names: str, **options: Any) -> list[dict[str, Tensor]]:
    """The named tensors after each step."""
    seen = []

    def record(_: Any, __: int, ___: Tensor, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        seen.append({name: tensor.clone() for name, tensor in tensors.items()})
        return {}

    names = names or ("latents",)
    run(
        pipeline,
        callback_on_step_end=record,
        callback_on_step_end_tensor_inputs=names,
        **options,
    )
    return seen


def after_each_step(pipeline: ColorFluxPipeline, **options: Any) -> list[Tensor]:
    return [tensors["latents"] for tensors in trajectory(pipeline, **options)]


# Against stock diffusers


def with_flux_widths(pipeline: ColorFluxPipeline) -> None:
    """FLUX.1-dev's prompt widths, which stock Redux takes for granted: 4096 and 768."""
    torch.manual_seed(0)
    widths = {"joint_attention_dim": 4096, "pooled_projection_dim": 768}
    config = {**pipeline.transformer.config, **widths}
    pipeline.transformer = FluxTransformer2DModel.from_config(config).eval()
    pipeline.controlnet = tiny_controlnet(**widths)
    pipeline.image_embedder = ReduxImageEncoder(
        redux_dim=pipeline.image_encoder.config.hidden_size, txt_in_features=4096
    )


def without_posterior_noise(pipeline: ColorFluxPipeline) -> None:
    """Stock samples the condition from the VAE's posterior: leave that no spread (exp(-15))."""
    last = pipeline.vae.quant_conv
    with torch.no_grad():
        last.weight[16:] = 0
        last.bias[16:] = -30


def stock_controlnet_pipeline(pipeline: ColorFluxPipeline) -> FluxControlNetPipeline:
    stock = FluxControlNetPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(**FLUX_SCHEDULE),
        vae=pipeline.vae,
        text_encoder=None,
        tokenizer=None,
        text_encoder_2=None,
        tokenizer_2=None,
        transformer=pipeline.transformer,
        controlnet=pipeline.controlnet,
    )
    stock.set_progress_bar_config(disable=True)
    return stock


def gray_scan() -> Image.Image:
    return Image.fromarray((255 * photos()[0, 0]).byte().numpy()).resize((96, 64)).convert("RGB")


@pytest.mark.parametrize("tower", ["siglip", "lite"])
def test_it_is_stock_redux_and_stock_controlnet_in_one(tower: Literal["siglip", "lite"]) -> None:
    pipeline, scan = tiny_pipeline(tower), gray_scan()
    with_flux_widths(pipeline)
    without_posterior_noise(pipeline)
    noise = torch.randn(1, 24, 64, generator=seeded(3))
    redux = FluxPriorReduxPipeline(
        image_encoder=pipeline.image_encoder,
        image_embedder=pipeline.image_embedder,
        feature_extractor=pipeline.feature_extractor,
    )
    expected = stock_controlnet_pipeline(pipeline)(
        **redux(scan),
        control_image=scan,
        height=64,
        width=96,
        num_inference_steps=8,
        guidance_scale=3.5,
        controlnet_conditioning_scale=1.0,
        latents=noise,
        output_type="pt",
    ).images
    assert (pipeline(scan, latents=noise).images - expected).abs().max() < 1e-4
    assert expected.std() > 0.01  # not a clipped or constant picture


@pytest.mark.parametrize("num_mode", [None, 7])
def test_with_a_text_and_all_settings_it_is_stock_controlnet(num_mode: int | None) -> None:
    pipeline, scan = tiny_pipeline(controlnet=tiny_controlnet(num_mode)), gray_scan()
    without_posterior_noise(pipeline)
    random = seeded(3)
    text, pooled = torch.randn(1, 5, 32, generator=random), torch.randn(1, 16, generator=random)
    options: dict[str, Any] = {
        "num_inference_steps": 5,
        "guidance_scale": 2.0,
        "controlnet_conditioning_scale": 0.7,
        "control_guidance_start": 0.2,
        "control_guidance_end": 0.8,
        "control_mode": None if num_mode is None else UNION_GRAY_MODE,
        "latents": torch.randn(1, 24, 64, generator=random),
        "prompt_embeds": text,
        "pooled_prompt_embeds": pooled,
    }
    (step, *_) = trajectory(pipeline, "prompt_embeds", photo=scan, **options)
    result = run(pipeline, scan, **options)
    expected = stock_controlnet_pipeline(pipeline)(
        control_image=scan,
        height=64,
        width=96,
        output_type="pt",
        **{**options, **step},
    ).images
    assert (result - expected).abs().max() < 1e-4
    assert expected.std() > 0.01


# What decides the result


def test_a_batch_is_its_photos_one_by_one() -> None:
    pipeline, two = tiny_pipeline(), photos(2)
    together = run(pipeline, two, generator=[seeded(1), seeded(2)])
    alone = [run(pipeline, two[i : i + 1], generator=seeded(i + 1)) for i in range(2)]
    torch.testing.assert_close(together, torch.cat(alone), atol=1e-5, rtol=0)


def test_the_seed_and_nothing_else_decides_the_noise() -> None:
    pipeline = tiny_pipeline()
    first = run(pipeline)
    torch.manual_seed(123)
    assert torch.equal(run(pipeline), first)
    assert not torch.equal(run(pipeline, generator=seeded(1)), first)


def test_only_the_luma_of_the_photo_counts() -> None:
    pipeline = tiny_pipeline()
    gray = (255 * grayscale(photos())).round() / 255
    color = gray + torch.tensor([0.114, 0.0, -0.299]).view(3, 1, 1) / 4
    inside = ((color >= 0) & (color <= 1)).all(dim=1, keepdim=True)
    color = color.where(inside, gray)
    assert inside.float().mean() > 0.5
    torch.testing.assert_close(run(pipeline, color), run(pipeline, gray), atol=1e-5, rtol=0)


def test_a_pil_photo_is_its_tensor() -> None:
    pipeline = tiny_pipeline()
    pixels = (255 * photos()).round()
    image = Image.fromarray(pixels[0].byte().permute(1, 2, 0).numpy())
    assert torch.equal(run(pipeline, image), run(pipeline, pixels / 255))


def test_a_reference_changes_the_prompt_and_nothing_else() -> None:
    pipeline = tiny_pipeline()
    reference = torch.rand(1, 3, 20, 70, generator=seeded(4))
    names = ("prompt_embeds", "control_latents")
    plain = trajectory(pipeline, *names)[0]
    led = trajectory(pipeline, *names, reference=reference)[0]
    assert torch.equal(led["control_latents"], plain["control_latents"])
    parts = (pipeline.image_encoder, pipeline.feature_extractor, pipeline.image_embedder)
    for tensors, picture in ((plain, grayscale(photos())), (led, reference)):
        assert torch.equal(tensors["prompt_embeds"][:, 3:], visual_prompt(*parts, picture))
        assert not tensors["prompt_embeds"][:, :3].any()


def test_one_reference_serves_all_photos() -> None:
    pipeline = tiny_pipeline()
    reference = torch.rand(1, 3, 20, 70)
    once = run(pipeline, photos(2), reference=reference)
    assert torch.equal(run(pipeline, photos(2), reference=reference.expand(2, -1, -1, -1)), once)


def test_a_text_stands_where_the_zero_tokens_stood() -> None:
    pipeline = tiny_pipeline()
    zeros = {"prompt_embeds": torch.zeros(1, 3, 32), "pooled_prompt_embeds": torch.zeros(1, 16)}
    plain = run(pipeline)
    assert torch.equal(run(pipeline, text_tokens=0, **zeros), plain)
    for name, tensor in zeros.items():
        assert not torch.equal(run(pipeline, **{**zeros, name: tensor + 1}), plain)
    assert not torch.equal(run(pipeline, text_tokens=0), plain)


# The ControlNet


def test_at_scale_0_the_controlnet_is_absent() -> None:
    pipeline = tiny_pipeline()
    silent = tiny_pipeline(controlnet=control_from_transformer(pipeline.transformer, 2, 4))
    expected = run(silent)
    assert not torch.equal(run(pipeline), expected)

    def refuse(*_: Any) -> None:
        raise AssertionError("the ControlNet ran")

    pipeline.controlnet.register_forward_pre_hook(refuse)
    assert torch.equal(run(pipeline, controlnet_conditioning_scale=0.0), expected)


def test_the_controlnet_has_its_share_of_the_steps() -> None:
    pipeline = tiny_pipeline()
    full = after_each_step(pipeline)
    none = after_each_step(pipeline, controlnet_conditioning_scale=0.0)
    late = after_each_step(pipeline, control_guidance_start=0.5)
    early = after_each_step(pipeline, control_guidance_end=0.5)
    for step in range(STEPS):
        half = step < STEPS // 2
        assert torch.equal(late[step], none[step]) == half
        assert torch.equal(early[step], full[step]) == half


def test_a_union_controlnet_is_told_what_it_sees() -> None:
    pipeline = tiny_pipeline(controlnet=tiny_controlnet(num_mode=7))
    gray = run(pipeline, control_mode=UNION_GRAY_MODE)
    assert not torch.equal(run(pipeline, control_mode=0), gray)
    for mode in (None, 7):
        with pytest.raises(ColorFluxError, match=r"needs a control_mode from 0 to 6.*set 5"):
            run(pipeline, control_mode=mode)


def test_other_controlnets_are_not() -> None:
    with pytest.raises(ColorFluxError, match=r"control_mode is 5, .* not a union"):
        run(tiny_pipeline(), control_mode=5)


def test_a_controlnet_for_pixels_is_refused() -> None:
    controlnet = tiny_controlnet(conditioning_embedding_channels=4)
    with pytest.raises(ColorFluxError, match="XLabs"):
        run(tiny_pipeline(controlnet=controlnet))


@pytest.mark.parametrize("listener", ["transformer", "controlnet", None])
def test_guidance_reaches_those_that_know_it(listener: str | None) -> None:
    pipeline = tiny_pipeline(controlnet=tiny_controlnet(guidance_embeds=listener == "controlnet"))
    if listener != "transformer":
        config = {**pipeline.transformer.config, "guidance_embeds": False}
        pipeline.transformer = FluxTransformer2DModel.from_config(config).eval()
    assert torch.equal(run(pipeline), run(pipeline, guidance_scale=1.0)) == (listener is None)


# The LoRA


@pytest.fixture
def lora(tmp_path: Path) -> Path:
    transformer = tiny_pipeline().transformer
    for parameter in add_lora(transformer, rank=2):
        nn.init.normal_(parameter, std=0.1, generator=seeded())
    save_lora(transformer, tmp_path / "pro_dpo.safetensors")
    return tmp_path / "pro_dpo.safetensors"


def test_lora_scale(lora: Path) -> None:
    pipeline = tiny_pipeline()
    plain = run(pipeline)
    pipeline.load_lora_weights(lora.parent, weight_name=lora.name)
    full, half = run(pipeline), run(pipeline, lora_scale=0.5)
    assert torch.equal(run(pipeline, lora_scale=0.0), plain)
    assert torch.equal(run(pipeline), full)  # not what the last call left behind
    pipeline.set_adapters(pipeline.get_active_adapters(), 0.5)
    assert torch.equal(run(pipeline), half)
    assert not torch.equal(full, plain)
    assert not torch.equal(half, full)


# Numbers, files, devices


def test_bfloat16_is_float32_but_for_rounding() -> None:
    pipeline = tiny_pipeline()
    exact = run(pipeline)
    rounded = run(pipeline.to(torch.bfloat16))
    assert rounded.dtype == torch.float32
    assert 0 < (rounded - exact).abs().mean() < 0.02


def test_parts_may_differ_in_dtype() -> None:
    pipeline = tiny_pipeline()
    exact = run(pipeline)
    pipeline.transformer.to(torch.bfloat16)
    pipeline.controlnet.to(torch.bfloat16)
    assert 0 < (run(pipeline) - exact).abs().mean() < 0.02


@pytest.mark.parametrize("tower", ["siglip", "lite"])
def test_saved_and_loaded_it_is_the_same(tower: Literal["siglip", "lite"], tmp_path: Path) -> None:
    pipeline = tiny_pipeline(tower)
    pipeline.save_pretrained(tmp_path)
    loaded = ColorFluxPipeline.from_pretrained(tmp_path)
    loaded.set_progress_bar_config(disable=True)
    assert torch.equal(run(loaded), run(pipeline))


def test_models_can_take_turns_on_the_device() -> None:
    pipeline = tiny_pipeline()
    expected = run(pipeline)
    pipeline.enable_model_cpu_offload(device="cpu")
    assert torch.equal(run(pipeline), expected)


def test_what_comes_out() -> None:
    pipeline = tiny_pipeline()
    rgb = run(pipeline)
    assert rgb.shape == (1, 3, 32, 48)
    assert rgb.dtype == torch.float32
    assert 0 <= rgb.min() < rgb.max() <= 1
    (image,) = run(pipeline, output_type="pil")
    (array,) = run(pipeline, output_type="np")
    assert image.tobytes() == (255 * array).round().astype("uint8").tobytes()
    assert torch.equal(torch.from_numpy(array).permute(2, 0, 1), rgb[0])
    tokens = run(pipeline, output_type="latent")
    assert torch.equal(tokens, after_each_step(pipeline)[-1])
    (same,) = pipeline(
        photos(), num_inference_steps=STEPS, text_tokens=3, generator=seeded(), return_dict=False
    )
    assert torch.equal(same, rgb)


# Steps


def test_a_callback_sees_each_step_and_may_replace_its_tensors() -> None:
    pipeline = tiny_pipeline()
    calls = []

    def blank(
        caller: Any, step: int, timestep: Tensor, tensors: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        calls.append((caller, step, timestep.item()))
        return {"latents": torch.zeros_like(tensors["latents"])}

    result = run(pipeline, callback_on_step_end=blank, output_type="latent")
    assert not result.any()
    assert [(caller, step) for caller, step, _ in calls] == [(pipeline, i) for i in range(STEPS)]
    assert [t for _, _, t in calls] == pipeline.scheduler.timesteps.tolist()


def test_a_callback_may_replace_the_prompt() -> None:
    pipeline = tiny_pipeline()

    def forget(_: Any, __: int, ___: Tensor, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"prompt_embeds": 0 * tensors["prompt_embeds"]}

    names = ["prompt_embeds"]
    changed = run(pipeline, callback_on_step_end=forget, callback_on_step_end_tensor_inputs=names)
    assert not torch.equal(changed, run(pipeline))


def test_it_can_be_interrupted() -> None:
    pipeline = tiny_pipeline()
    first = after_each_step(pipeline)[0]

    def stop(caller: Any, _: int, __: Tensor, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        caller._interrupt = True
        return tensors

    assert torch.equal(run(pipeline, callback_on_step_end=stop, output_type="latent"), first)
    assert len(after_each_step(pipeline)) == STEPS


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"photo": torch.rand(1, 3, 32, 40)}, "multiples of 16"),
        ({"photo": torch.rand(1, 3, 33, 48)}, "48x33"),
        ({"photo": torch.rand(3, 32, 48)}, r"photo must be .* \(3, 32, 48\)"),
        ({"photo": torch.rand(1, 1, 32, 48)}, "photo must be"),
        (
            {"photo": torch.zeros(1, 3, 32, 48, dtype=torch.uint8)},
            "photo must be a float .*, not torch.uint8",
        ),
        ({"photo": 2 * photos() - 1}, r"photo must be in \[0, 1\]"),
        ({"photo": photos().fill_(torch.nan)}, r"photo must be in \[0, 1\]"),
        ({"photo": [Image.new("L", (48, 32)), Image.new("L", (32, 32))]}, "photo: .* same size"),
        ({"photo": []}, "photo: .* same size"),
        ({"reference": photos(2)}, "2 references for 1 photos"),
        ({"num_inference_steps": 0}, "steps is 0"),
        ({"text_tokens": -1}, "text_tokens is -1"),
        ({"control_guidance_start": 0.5, "control_guidance_end": 0.4}, "control_end is 0.4"),
        ({"prompt_embeds": torch.zeros(1, 3, 31)}, "prompt_embeds"),
        ({"pooled_prompt_embeds": torch.zeros(1, 15)}, "pooled_prompt_embeds"),
        ({"latents": torch.zeros(1, 7, 64)}, "latents"),
        ({"output_type": "jpeg"}, "output_type is 'jpeg'"),
        ({"callback_on_step_end_tensor_inputs": ["latents", "foo"]}, "tensor_inputs is 'foo'"),
    ],
    ids=lambda value: "" if isinstance(value, str) else "-".join(value),
)
def test_bad_input(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ColorFluxError, match=message):
        run(tiny_pipeline(), **options)
