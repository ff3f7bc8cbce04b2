"""The flow-matching step (Eq. 1 and 2), shared by all stages with a flow-matching loss."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from diffusers import FluxControlNetModel, FluxTransformer2DModel
from torch import Tensor, nn

from colorflux_core.model.flow import sample_path, sample_timesteps, squared_error
from colorflux_core.model.velocity import Conditions, control_residuals, predict_velocity
from colorflux_core.model.visual_prompt import after_text_tokens

from ..data.rows import Batch
from ..stage import Columns
from .parts import Parts, PartsConfig, pipeline


def flow_error(
    transformer: FluxTransformer2DModel,
    x_0: Tensor,
    noise: Tensor,
    t: Tensor,
    conditions: Conditions,
    controlnet: FluxControlNetModel | None = None,
    gray_latents: Tensor | None = None,
) -> Tensor:
    """||(eps - x_0) - v_theta(x_t, t)||^2 of each row (B,): Eq. 2 before taking the expectation.

    Args:
        transformer: FLUX.
        x_0: Packed latents of the photos (B, L, 64).
        noise: eps (B, L, 64).
        t: Timesteps (B,) in [0, 1].
        conditions: Prompt, latent size and guidance, for the transformer and the ControlNet.
        controlnet: The gray ControlNet; None to train without one.
        gray_latents: Packed latents of the gray photos (B, L, 64), the ControlNet's input.
    """
    path = sample_path(x_0, noise, t)
    residuals = None
    if controlnet is not None and gray_latents is not None:
        residuals = control_residuals(controlnet, path.x_t, t, gray_latents, conditions)
    predicted = predict_velocity(transformer, path.x_t, t, conditions, residuals)
    return squared_error(predicted, path.velocity)


def with_noise(
    batch: Batch, photo: str, generators: list[torch.Generator], config: PartsConfig
) -> Batch:
    """Add noise eps (B, L, 64) and timesteps t (B,) for x_0 in the column ``photo`` (Eq. 1).

    Args:
        batch: Columns (B, ...).
        photo: Name of the column of x_0.
        generators: One per row; both are drawn from it.
        config: Gives the density of the timesteps.
    """
    rows = batch[photo]
    noise = torch.stack([torch.randn(rows.shape[1:], generator=g) for g in generators])
    t = torch.cat([sample_timesteps(1, g, config.timestep_density) for g in generators])
    return {**batch, "noise": noise.to(rows.device), "t": t.to(rows.device)}


class FlowStage:
    """Base class of the stages that train with flow matching.

    Columns of a batch: x_0 under the name ``photo``, its gray photo's latents as ``gray_latents``.
    """

    photo = "latents"
    columns: Columns

    def __init__(self, config: PartsConfig, parts: Parts) -> None:
        self.config, self.parts = config, parts

    def prepare_batch(self, batch: Batch, generators: list[torch.Generator]) -> Batch:
        return with_noise(batch, self.photo, generators, self.config)

    def conditions(self, c_v: Tensor) -> Conditions:
        """Conditions for the visual prompt ``c_v`` (B, T, D), preceded by zero text tokens."""
        prompt = after_text_tokens(c_v, self.config.text_tokens)
        return Conditions(prompt, self.config.latent_size, self.config.guidance)

    def flow_error(
        self,
        batch: Batch,
        c_v: Tensor,
        transformer: FluxTransformer2DModel,
        controlnet: FluxControlNetModel | None = None,
    ) -> Tensor:
        """`flow_error` (B,) of a prepared batch, given the visual prompt ``c_v`` (B, T, D)."""
        return flow_error(
            transformer,
            batch[self.photo],
            batch["noise"],
            batch["t"],
            self.conditions(c_v),
            controlnet,
            batch["gray_latents"] if controlnet is not None else None,
        )

    def colorizer(self, **models: nn.Module) -> Callable[..., Tensor]:
        """Colorizes photos (B, 3, S, S) as the stage is trained, for samples, with seed 0.

        ``models`` replace those of the base; the function takes the pipeline's other options.
        """
        colorize = pipeline(self.parts, **models)

        def colorized(photos: Tensor, **options: Any) -> Tensor:
            images: Tensor = colorize(
                photos,
                guidance_scale=self.config.guidance,
                text_tokens=self.config.text_tokens,
                generator=torch.Generator().manual_seed(0),
                **options,
            ).images
            return images

        return colorized

    def blank(self, rows: int) -> Batch:
        """A prepared batch of zeros in the shapes of a real one, for ``--plan``."""
        height, width = self.config.latent_size
        length = height * width // 4
        batch = {name: torch.zeros(rows, length, 64) for name in (*self.columns.latents, "noise")}
        if self.columns.tokens:
            shape = (rows, *self._token_shape())
            tokens = {n: torch.zeros(shape, dtype=torch.bfloat16) for n in self.columns.tokens}
            batch |= tokens
        return batch | {"t": torch.zeros(rows)}

    def _token_shape(self) -> tuple[int, ...]:
        """(T, D) of the vision tower's output, from its config alone."""
        tower = Parts(self.config, weights=False).load("image_encoder")
        side = tower.config.image_size
        pixels = torch.empty(1, 3, side, side, device="meta", dtype=tower.dtype)
        return tuple(tower(pixel_values=pixels).last_hidden_state.shape[1:])
