"""One evaluation of v_theta(x_t, t): the gray ControlNet's residuals, then FLUX with them."""

from __future__ import annotations

from dataclasses import dataclass

from diffusers import FluxControlNetModel, FluxTransformer2DModel
from torch import Tensor

from .latents import image_ids


@dataclass(frozen=True)
class Residuals:
    """What the ControlNet adds after each double and single block; None where it adds nothing."""

    double: list[Tensor] | None
    single: list[Tensor] | None


def control_residuals(
    controlnet: FluxControlNetModel,
    x_t: Tensor,
    t: Tensor,
    control_latents: Tensor,
    prompt: Tensor,
    latent_size: tuple[int, int],
    guidance: float,
    scale: float = 1.0,
    mode: Tensor | None = None,
    pooled: Tensor | None = None,
) -> Residuals:
    """The ControlNet's residuals for x_t and the gray photo's latents, both packed (B, L, C).

    ``t`` (B,) is in [0, 1]; ``prompt`` (B, T, D) is the visual prompt behind its text tokens;
    ``latent_size`` the latents' height and width before packing; ``mode`` (B, 1) the control mode
    of a union ControlNet; ``pooled`` (B, P) a text's pooled vector, zero without a text.
    """
    double, single = controlnet(
        hidden_states=x_t,
        controlnet_cond=control_latents,
        controlnet_mode=mode,
        conditioning_scale=scale,
        return_dict=False,
        **conditions(controlnet, x_t, t, prompt, latent_size, guidance, pooled),
    )
    return Residuals(double, single)


def predict_velocity(
    transformer: FluxTransformer2DModel,
    x_t: Tensor,
    t: Tensor,
    prompt: Tensor,
    latent_size: tuple[int, int],
    guidance: float,
    residuals: Residuals | None = None,
    pooled: Tensor | None = None,
) -> Tensor:
    """v_theta(x_t, t) (B, L, C), given the visual prompt and, in ``residuals``, the gray photo."""
    return transformer(
        hidden_states=x_t,
        controlnet_block_samples=residuals and residuals.double,
        controlnet_single_block_samples=residuals and residuals.single,
        return_dict=False,
        **conditions(transformer, x_t, t, prompt, latent_size, guidance, pooled),
    )[0]


def conditions(
    model: FluxControlNetModel | FluxTransformer2DModel,
    x_t: Tensor,
    t: Tensor,
    prompt: Tensor,
    latent_size: tuple[int, int],
    guidance: float,
    pooled: Tensor | None = None,
) -> dict[str, Tensor | None]:
    """What both networks are told beside x_t. Text positions are zero, as is the pooled vector."""
    batch, config = len(x_t), model.config
    if pooled is None:
        pooled = x_t.new_zeros(batch, config.pooled_projection_dim)
    return {
        "timestep": t.to(x_t.dtype),
        "guidance": x_t.new_full((batch,), guidance) if config.guidance_embeds else None,
        "encoder_hidden_states": prompt,
        "pooled_projections": pooled,
        "txt_ids": x_t.new_zeros(prompt.shape[1], 3),
        "img_ids": image_ids(*latent_size, x_t.device, x_t.dtype),
    }
