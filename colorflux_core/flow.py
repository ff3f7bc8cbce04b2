"""Rectified flow and the losses of the three stages: the paper's Eq. 1 to 6, in order.

Latents are packed, (B, L, C); a timestep t is (B,) in [0, 1], 0 the photo and 1 pure noise. Squared
norms are means over a row's dimensions, as in the public DPO code: beta = 1000 fits that only.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.pipelines.flux.pipeline_flux import calculate_shift
from torch import Tensor
from torch.nn import functional as F

TimestepDensity = Literal["logit_normal", "uniform"]
BetaSchedule = Literal["constant", "time"]


def interpolate(x_0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
    """x_t = (1 - t) x_0 + t eps (Eq. 1)."""
    t = t.view(-1, *[1] * (x_0.ndim - 1))
    return (1 - t) * x_0 + t * noise


def velocity(x_0: Tensor, noise: Tensor) -> Tensor:
    """The target velocity v = eps - x_0 (Eq. 2)."""
    return noise - x_0


def sample_timesteps(
    count: int,
    generator: torch.Generator,
    density: TimestepDensity = "logit_normal",
    shift: float = 1.0,
) -> Tensor:
    """(count,) timesteps in (0, 1); a ``shift`` above 1 moves them towards noise.

    The paper does not say how they are drawn; logit-normal(0, 1) is SD3's choice, as is the shift:
    e^mu of the schedule at inference (e^1.15 = 3.16 at 1024 x 1024).
    """
    if density == "uniform":
        t = torch.rand(count, generator=generator)
    else:
        t = torch.randn(count, generator=generator).sigmoid()
    return shift * t / (1 + (shift - 1) * t)


def squared_error(prediction: Tensor, target: Tensor) -> Tensor:
    """||target - prediction||^2 of each row (B,), as the mean over its dimensions, in float32."""
    return (target.float() - prediction.float()).square().flatten(1).mean(1)


def flow_matching_loss(predicted: Tensor, target: Tensor) -> Tensor:
    """L_FM (Eq. 2): the expectation of the squared velocity error. A scalar."""
    return squared_error(predicted, target).mean()


def distillation_loss(gray_prompt: Tensor, color_prompt: Tensor) -> Tensor:
    """L_distill (Eq. 5) between Phi(gray) and the frozen Phi'(color), both (B, tokens, width)."""
    return squared_error(gray_prompt, color_prompt.detach()).mean()


class PreferenceTerms(NamedTuple):
    """Eq. 4 row by row; all (B,).

    ``margin`` is how much more the policy gains on the winner than on the loser, beside the
    reference; ``logit``, beta_t / 2 times that, is the argument of the log-sigmoid.
    """

    logit: Tensor
    margin: Tensor
    winner_error: Tensor
    loser_error: Tensor

    @property
    def loss(self) -> Tensor:
        """L_Diff-DPO (Eq. 4), a scalar; ln 2 while the policy is the reference."""
        return -F.logsigmoid(self.logit).mean()

    @property
    def implicit_accuracy(self) -> Tensor:
        """The share of pairs that the policy, beside the reference, ranks as the data does.

        A tie counts one half, so a policy equal to its reference has 0.5.
        """
        return ((self.logit > 0).float() + 0.5 * (self.logit == 0).float()).mean()


def beta_at(t: Tensor, beta: float, schedule: BetaSchedule) -> Tensor:
    """beta_t of Eq. 4: the constant that the paper trains with, or beta (1 - t)^2."""
    return torch.full_like(t, beta) if schedule == "constant" else beta * (1 - t) ** 2


def preference_terms(
    policy_winner: Tensor,
    policy_loser: Tensor,
    reference_winner: Tensor,
    reference_loser: Tensor,
    winner_velocity: Tensor,
    loser_velocity: Tensor,
    beta_t: Tensor,
) -> PreferenceTerms:
    """Diffusion-DPO on velocities (Eq. 4). The six predictions and targets are (B, L, C)."""
    winner_error = squared_error(policy_winner, winner_velocity)
    loser_error = squared_error(policy_loser, loser_velocity)
    winner_gain = winner_error - squared_error(reference_winner, winner_velocity)
    loser_gain = loser_error - squared_error(reference_loser, loser_velocity)
    margin = loser_gain - winner_gain
    return PreferenceTerms(beta_t / 2 * margin, margin, winner_error, loser_error)


def set_timesteps(
    scheduler: FlowMatchEulerDiscreteScheduler, steps: int, image_tokens: int, device: torch.device
) -> Tensor:
    """Set FLUX's Euler schedule of ``steps`` steps, shifted for the image's token count.

    Returns the timesteps (steps,) on the scheduler's scale of 1000. At 1024 x 1024 (4096 tokens) mu
    is 1.15.
    """
    config = scheduler.config
    mu = calculate_shift(
        image_tokens,
        config.base_image_seq_len,
        config.max_image_seq_len,
        config.base_shift,
        config.max_shift,
    )
    scheduler.set_timesteps(sigmas=np.linspace(1.0, 1 / steps, steps), mu=mu, device=device)
    return scheduler.timesteps
