"""One evaluation of v_theta(x_t, t): the gray ControlNet, then FLUX with its residuals."""

from __future__ import annotations

from dataclasses import dataclass

from diffusers import FluxControlNetModel, FluxTransformer2DModel
from torch import Tensor

from .latents import image_ids


@dataclass(frozen=True)
class Conditions:
    """The inputs of FLUX and its ControlNet besides x_t and t.

    Attributes:
        prompt: The visual prompt after its text tokens, (B, T, D).
        latent_size: Height and width of the latents before packing.
        guidance: Guidance scale, used by guidance-distilled models (``guidance_embeds``).
        pooled: The text's pooled vector (B, P); None means zeros.
    """

    prompt: Tensor
    latent_size: tuple[int, int]
    guidance: float
    pooled: Tensor | None = None


@dataclass(frozen=True)
class Residuals:
    """What the ControlNet adds after the double and single blocks; None adds nothing."""

    double: list[Tensor] | None
    single: list[Tensor] | None


def control_residuals(
    controlnet: FluxControlNetModel,
    x_t: Tensor,
    t: Tensor,
    control_latents: Tensor,
    conditions: Conditions,
    scale: float = 1.0,
    mode: Tensor | None = None,
) -> Residuals:
    """The ControlNet's residuals for x_t.

    Args:
        controlnet: The gray ControlNet.
        x_t: Packed noisy latents (B, L, C).
        t: Timesteps (B,) in [0, 1].
        control_latents: Packed latents of the gray photo (B, L, C).
        conditions: The same as the transformer's.
        scale: Strength of the ControlNet.
        mode: Control mode (B, 1) of a union ControlNet.
    """
    double, single = controlnet(
        hidden_states=x_t,
        controlnet_cond=control_latents,
        controlnet_mode=mode,
        conditioning_scale=scale,
        return_dict=False,
        **_model_inputs(controlnet, x_t, t, conditions),
    )
    return Residuals(double, single)


def predict_velocity(
    transformer: FluxTransformer2DModel,
    x_t: Tensor,
    t: Tensor,
    conditions: Conditions,
    residuals: Residuals | None = None,
) -> Tensor:
    """v_theta(x_t, t) (B, L, C); without ``residuals`` the gray photo has no influence.

    ``x_t`` (B, L, C) are packed noisy latents, ``t`` (B,) timesteps in [0, 1].
    """
    return transformer(
        hidden_states=x_t,
        controlnet_block_samples=residuals and residuals.double,
        controlnet_single_block_samples=residuals and residuals.single,
        return_dict=False,
        **_model_inputs(transformer, x_t, t, conditions),
    )[0]


def _model_inputs(
    model: FluxControlNetModel | FluxTransformer2DModel,
    x_t: Tensor,
    t: Tensor,
    conditions: Conditions,
) -> dict[str, Tensor | None]:
    """The inputs that both networks have in common. Text positions are zero, as in FLUX.1."""
    batch, config, prompt = len(x_t), model.config, conditions.prompt
    pooled = conditions.pooled
    if pooled is None:
        pooled = x_t.new_zeros(batch, config.pooled_projection_dim)
    guidance = x_t.new_full((batch,), conditions.guidance) if config.guidance_embeds else None
    return {
        "timestep": t.to(x_t.dtype),
        "guidance": guidance,
        "encoder_hidden_states": prompt,
        "pooled_projections": pooled,
        "txt_ids": x_t.new_zeros(prompt.shape[1], 3),
        "img_ids": image_ids(*conditions.latent_size, x_t.device, x_t.dtype),
    }
