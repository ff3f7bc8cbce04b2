"""Rectified flow and the losses: Eq. 1, 2, 4 and 5 of the paper.

Latents are packed, (B, L, C). Timesteps t are (B,) in [0, 1]: 0 is the photo, 1 is pure noise.
Squared norms are means over a row's dimensions, as in the public Diffusion-DPO code. beta = 1000
presupposes this: with sums, the sigmoid would saturate. Eq. 6 is in ``training/basic_color.py``.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from torch import Tensor
from torch.nn import functional as F

TimestepDensity = Literal["logit_normal", "uniform"]
BetaSchedule = Literal["constant", "time"]


class PathSample(NamedTuple):
    """A point on the straight path from photos to noise, and the velocity along it.

    Attributes:
        x_t: (1 - t) x_0 + t eps (Eq. 1), of the shape of x_0.
        velocity: eps - x_0, the target of Eq. 2, of the same shape.
    """

    x_t: Tensor
    velocity: Tensor


def sample_path(x_0: Tensor, noise: Tensor, t: Tensor) -> PathSample:
    """The path from ``x_0`` to ``noise``, both (B, ...), at timesteps ``t`` (B,) in [0, 1]."""
    weight = t.view(-1, *[1] * (x_0.ndim - 1))
    return PathSample((1 - weight) * x_0 + weight * noise, noise - x_0)


def sample_timesteps(
    count: int, generator: torch.Generator, density: TimestepDensity = "logit_normal"
) -> Tensor:
    """(count,) timesteps in (0, 1).

    The paper does not specify the density; logit-normal(0, 1) is that of SD3.
    """
    if density == "uniform":
        return torch.rand(count, generator=generator)
    return torch.randn(count, generator=generator).sigmoid()


def squared_error(prediction: Tensor, target: Tensor) -> Tensor:
    """||target - prediction||^2 of each row (B,), as the mean over its dimensions, in float32.

    Its mean over the rows is L_FM (Eq. 2) for velocities, and L_distill (Eq. 5) for the prompts
    Phi(gray) and Phi'(color).
    """
    return (target.float() - prediction.float()).square().flatten(1).mean(1)


class PreferenceTerms(NamedTuple):
    """The terms of Eq. 4 for each row; all (B,).

    ``margin`` is the policy's improvement over the reference on the winner, minus that on the
    loser; ``logit`` is beta_t / 2 times the margin, the argument of the log-sigmoid.
    """

    logit: Tensor
    margin: Tensor
    winner_error: Tensor
    loser_error: Tensor

    @property
    def loss(self) -> Tensor:
        """L_Diff-DPO (Eq. 4), a scalar; ln 2 if the policy equals the reference."""
        return -F.logsigmoid(self.logit).mean()

    @property
    def implicit_accuracy(self) -> Tensor:
        """The fraction of pairs whose winner the policy, relative to the reference, prefers.

        A tie counts one half, so a policy equal to its reference has 0.5.
        """
        return ((self.logit > 0).float() + 0.5 * (self.logit == 0).float()).mean()


def beta_at(t: Tensor, beta: float, schedule: BetaSchedule) -> Tensor:
    """beta_t of Eq. 4: constant, as in the paper, or beta (1 - t)^2."""
    return torch.full_like(t, beta) if schedule == "constant" else beta * (1 - t) ** 2


def preference_terms(
    policy: Tensor,
    reference: Tensor,
    velocity: Tensor,
    beta_t: Tensor,
) -> PreferenceTerms:
    """Diffusion-DPO on velocities (Eq. 4), for pairs stacked in one batch, winners first.

    Args:
        policy: Velocities that the policy predicts (2B, L, C).
        reference: Velocities that the reference predicts (2B, L, C).
        velocity: The targets eps - x_0 (2B, L, C).
        beta_t: (B,).
    """
    error = squared_error(policy, velocity)
    change = error - squared_error(reference, velocity)  # Negative where the policy is better.
    winner_error, loser_error = error.chunk(2)
    winner_change, loser_change = change.chunk(2)
    margin = loser_change - winner_change
    return PreferenceTerms(beta_t / 2 * margin, margin, winner_error, loser_error)


def set_timesteps(
    scheduler: FlowMatchEulerDiscreteScheduler, steps: int, image_tokens: int, device: torch.device
) -> Tensor:
    """Set FLUX's Euler schedule, with the shift mu for the image's number of tokens.

    Returns the timesteps (steps,), scaled to 1000. For 1024 x 1024 pixels (4096 tokens) mu is 1.15.
    """
    config = scheduler.config
    slope = (config.max_shift - config.base_shift) / (
        config.max_image_seq_len - config.base_image_seq_len
    )
    mu = image_tokens * slope + (config.base_shift - slope * config.base_image_seq_len)
    scheduler.set_timesteps(sigmas=np.linspace(1.0, 1 / steps, steps), mu=mu, device=device)
    return scheduler.timesteps
