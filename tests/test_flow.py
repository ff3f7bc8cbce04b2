from __future__ import annotations

import math

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from torch import Tensor, nn

from colorflux_core.components import FLUX_SCHEDULE
from colorflux_core.flow import (
    PreferenceTerms,
    beta_at,
    distillation_loss,
    flow_matching_loss,
    interpolate,
    preference_terms,
    sample_timesteps,
    set_timesteps,
    squared_error,
    velocity,
)
from colorflux_core.lora import add_lora, reference_policy
from colorflux_core.velocity import control_residuals, predict_velocity
from tests.flux_models import tiny_transformer
from tests.nano_models import tiny_controlnet

LN_2 = math.log(2)
SHAPE = (4, 6, 64)


def noise(seed: int, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*(shape or SHAPE), generator=generator, dtype=dtype)


@pytest.fixture
def photo() -> Tensor:
    return noise(0, dtype=torch.float64)


@pytest.fixture
def eps() -> Tensor:
    return noise(1, dtype=torch.float64)


# Eq. 1 and 2


@pytest.mark.parametrize("shape", [(4, 6, 64), (4, 16, 3, 5), (4, 1)])
def test_it_leads_from_the_photo_to_the_noise(shape: tuple[int, ...]) -> None:
    photo, eps = noise(0, *shape), noise(1, *shape)
    assert torch.equal(interpolate(photo, eps, torch.zeros(4)), photo)
    assert torch.equal(interpolate(photo, eps, torch.ones(4)), eps)
    mixed = interpolate(photo, eps, torch.tensor([0.0, 1.0, 0.5, 0.25]))
    assert torch.equal(mixed[0], photo[0])
    assert torch.equal(mixed[1], eps[1])
    torch.testing.assert_close(mixed[2], (photo[2] + eps[2]) / 2)
    torch.testing.assert_close(mixed[3], 0.75 * photo[3] + 0.25 * eps[3])


def test_the_velocity_is_the_derivative_and_leads_back(photo: Tensor, eps: Tensor) -> None:
    t, step = torch.tensor([0.1, 0.4, 0.6, 0.9], dtype=torch.float64), 1e-6
    x_t = interpolate(photo, eps, t)
    derivative = (interpolate(photo, eps, t + step) - x_t) / step
    v = velocity(photo, eps)
    torch.testing.assert_close(derivative, v, rtol=0, atol=1e-8)
    torch.testing.assert_close(x_t - t[:, None, None] * v, photo)
    torch.testing.assert_close(x_t + (1 - t[:, None, None]) * v, eps)


def test_eulers_steps_with_the_true_velocity_end_at_the_photo() -> None:
    photo, eps = noise(0), noise(1)
    scheduler = FlowMatchEulerDiscreteScheduler(**FLUX_SCHEDULE)
    x_t = eps
    for timestep in set_timesteps(scheduler, 8, 4096, torch.device("cpu")):
        x_t = scheduler.step(velocity(photo, eps), timestep, x_t, return_dict=False)[0]
    torch.testing.assert_close(x_t, photo, rtol=0, atol=1e-5)


def test_losses_are_means_over_dimensions_and_rows() -> None:
    target = torch.zeros(2, 3, 5)
    predicted = torch.stack([torch.full((3, 5), 2.0), torch.full((3, 5), -4.0)])
    assert torch.equal(squared_error(predicted, target), torch.tensor([4.0, 16.0]))
    assert flow_matching_loss(predicted, target) == 10
    assert distillation_loss(predicted, target) == 10
    assert flow_matching_loss(target, target) == 0
    wide = squared_error(predicted.repeat(1, 7, 9), target.repeat(1, 7, 9))
    assert torch.equal(wide, squared_error(predicted, target))


def test_errors_are_summed_in_float32() -> None:
    target = torch.zeros(1, 4096, 64, dtype=torch.bfloat16)
    predicted = torch.full_like(target, 0.01)
    error = squared_error(predicted, target)
    assert error.dtype == torch.float32
    assert error.item() == pytest.approx(predicted[0, 0, 0].item() ** 2, rel=1e-5)


# Timesteps


def test_logit_normal_timesteps() -> None:
    t = sample_timesteps(100_000, torch.Generator().manual_seed(0))
    assert t.shape == (100_000,)
    assert t.min() > 0
    assert t.max() < 1
    logits = t.double().logit()
    assert logits.mean().abs() < 0.01
    assert logits.std() == pytest.approx(1, abs=0.01)
    assert t.median() == pytest.approx(0.5, abs=0.005)
    assert (t < 0.2689414).float().mean() == pytest.approx(0.158655, abs=0.005)  # one sigma below


def test_uniform_timesteps() -> None:
    t = sample_timesteps(100_000, torch.Generator().manual_seed(0), "uniform")
    assert t.mean() == pytest.approx(0.5, abs=0.005)
    assert t.var() == pytest.approx(1 / 12, abs=0.002)


def test_shifted_timesteps_are_moved_as_the_schedule_is() -> None:
    plain, shifted = (
        sample_timesteps(1000, torch.Generator().manual_seed(0), "uniform", shift)
        for shift in (1.0, 3.0)
    )
    torch.testing.assert_close(shifted, 3 * plain / (1 + 2 * plain))
    assert shifted.median() == pytest.approx(0.75, abs=0.03)
    assert shifted.max() < 1


def test_timesteps_are_the_generators() -> None:
    one, other = (sample_timesteps(9, torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(one, other)


def test_the_schedule_at_1024_x_1024() -> None:
    scheduler = FlowMatchEulerDiscreteScheduler(**FLUX_SCHEDULE)
    timesteps = set_timesteps(scheduler, 8, 4096, torch.device("cpu"))
    expected = [1, 0.95672, 0.90453, 0.84035, 0.75951, 0.65457, 0.51284, 0.31090, 0]
    torch.testing.assert_close(scheduler.sigmas, torch.tensor(expected), rtol=0, atol=1e-5)
    torch.testing.assert_close(timesteps / 1000, scheduler.sigmas[:-1])
    unshifted = torch.linspace(1, 1 / 8, 8)
    mu = 1.15
    shifted = math.exp(mu) / (math.exp(mu) + 1 / unshifted - 1)
    torch.testing.assert_close(scheduler.sigmas[:-1], shifted)


@pytest.mark.parametrize(("tokens", "mu"), [(256, 0.5), (4096, 1.15), (2176, 0.825)])
def test_mu_is_linear_in_the_tokens(tokens: int, mu: float) -> None:
    scheduler = FlowMatchEulerDiscreteScheduler(**FLUX_SCHEDULE)
    set_timesteps(scheduler, 2, tokens, torch.device("cpu"))
    assert scheduler.sigmas[1] == pytest.approx(math.exp(mu) / (math.exp(mu) + 1))


# Eq. 4


class Pair:
    """Winner and loser: their velocities, and what the reference predicts for them."""

    def __init__(self, dtype: torch.dtype = torch.float64) -> None:
        self.winner, self.loser = noise(2, dtype=dtype), noise(3, dtype=dtype)
        self.reference_winner, self.reference_loser = noise(4, dtype=dtype), noise(5, dtype=dtype)

    def against(self, winner: Tensor, loser: Tensor, beta_t: Tensor) -> PreferenceTerms:
        """For what a policy predicts."""
        reference = self.reference_winner, self.reference_loser
        return preference_terms(winner, loser, *reference, self.winner, self.loser, beta_t)

    def terms(self, winner: float, loser: float, beta: float | Tensor = 1.0) -> PreferenceTerms:
        """For a policy that is so far on the way from the reference to the target."""
        return self.against(
            torch.lerp(self.reference_winner, self.winner, winner),
            torch.lerp(self.reference_loser, self.loser, loser),
            torch.as_tensor(beta).expand(len(self.winner)),
        )


@pytest.mark.parametrize("beta", [1.0, 1000.0, 1e6])
def test_a_policy_equal_to_its_reference_has_ln_2_and_ties(beta: float) -> None:
    terms = Pair(torch.float32).terms(0, 0, beta)
    assert terms.loss.item() == pytest.approx(LN_2, abs=1e-6)
    assert terms.implicit_accuracy == 0.5
    assert not terms.logit.any()


def test_against_the_equation_by_hand() -> None:
    """The winner's error falls from 4 to 1, the loser's rises from 9 to 16; beta is 1/5."""
    one = torch.ones(1, 1, 1)
    terms = preference_terms(one, 4 * one, 2 * one, 3 * one, 0 * one, 0 * one, torch.tensor([0.2]))
    assert terms.margin.item() == pytest.approx(10)  # -((1 - 4) - (16 - 9))
    assert terms.logit.item() == pytest.approx(1)
    assert terms.loss.item() == pytest.approx(math.log(1 + math.exp(-1)))
    assert terms.winner_error == 1
    assert terms.loser_error == 16


def test_the_sign_prefers_the_winner() -> None:
    """Better on the winner, or worse on the loser, is what the loss rewards; and the reverse."""
    for better in (Pair().terms(0.3, 0), Pair().terms(0, -0.3), Pair().terms(0.5, 0.1)):
        assert (better.logit > 0).all()
        assert better.loss < LN_2
        assert better.implicit_accuracy == 1
    for worse in (Pair().terms(-0.3, 0), Pair().terms(0, 0.3)):
        assert (worse.logit < 0).all()
        assert worse.loss > LN_2
        assert worse.implicit_accuracy == 0


def test_implicit_accuracy_is_a_share_of_the_pairs() -> None:
    logit = torch.tensor([3.0, -2.0, 0.0, 1e-9, -1e-9])
    terms = PreferenceTerms(logit, *torch.zeros(3, 5))
    assert terms.implicit_accuracy.item() == pytest.approx(2.5 / 5)


def test_beta_scales_the_logit_alone() -> None:
    one, many = Pair().terms(0.01, -0.02), Pair().terms(0.01, -0.02, beta=1000)
    torch.testing.assert_close(many.logit, 1000 * one.logit)
    assert torch.equal(many.margin, one.margin)
    assert torch.equal(many.winner_error, one.winner_error)
    assert torch.equal(many.loser_error, one.loser_error)


def test_beta_over_time() -> None:
    t = torch.tensor([0.0, 0.25, 0.5, 1.0])
    assert beta_at(t, 1000, "constant").tolist() == [1000] * 4
    assert beta_at(t, 1000, "time").tolist() == [1000, 562.5, 250, 0]
    terms = Pair().terms(0.2, 0, beta_at(t, 1000, "time"))
    assert terms.logit[-1] == 0
    assert (terms.logit[:-1] > 0).all()


def test_the_logit_does_not_grow_with_the_picture() -> None:
    """A mean over dimensions, not a sum: with sums beta = 1000 saturates at once."""
    small, large = Pair(), Pair()
    for name, latents in vars(large).items():
        setattr(large, name, latents.repeat(1, 8, 2))
    torch.testing.assert_close(large.terms(0.2, -0.1).logit, small.terms(0.2, -0.1).logit)


def test_a_hopeless_pair_has_a_finite_loss_and_gradient() -> None:
    policy = noise(0).requires_grad_()
    beta_t = torch.full((len(policy),), 1000.0)
    loss = Pair(torch.float32).against(100 * policy, noise(1), beta_t).loss
    loss.backward()
    assert loss.isfinite()
    assert policy.grad is not None
    assert policy.grad.isfinite().all()


def test_the_gradient_pulls_to_the_winner_and_pushes_from_the_loser() -> None:
    """At the reference: dL/dv = beta/4 d(error)/dv on the winner, its negative on the loser."""
    pair, beta = Pair(), 8.0
    winner, loser = pair.reference_winner.clone(), pair.reference_loser.clone()
    beta_t = torch.full((len(winner),), beta)
    pair.against(winner.requires_grad_(), loser.requires_grad_(), beta_t).loss.backward()
    for policy, target, sign in ((winner, pair.winner, 1), (loser, pair.loser, -1)):
        error_gradient = 2 * (policy.detach() - target) / target[0].numel()
        expected = sign * beta / 4 * error_gradient / len(target)
        torch.testing.assert_close(policy.grad, expected, rtol=1e-5, atol=1e-9)


def tiny_policy(
    transformer: nn.Module, controlnet: nn.Module, photos: Tensor, t: Tensor, eps: Tensor
) -> Tensor:
    x_t = interpolate(photos, eps, t)
    given = (noise(8, len(photos), 5, 32), (4, 6), 3.5)
    with torch.no_grad():
        residuals = control_residuals(controlnet, x_t, t, noise(9, *photos.shape), *given)
    return predict_velocity(transformer, x_t, t, *given, residuals=residuals)


def test_a_fresh_lora_beside_the_controlnet_starts_at_ln_2_and_learns_the_winner() -> None:
    transformer, controlnet = tiny_transformer(), tiny_controlnet()
    parameters = add_lora(transformer, rank=4)
    photos, eps, t = noise(0), noise(1, 2, 6, 64).repeat(2, 1, 1), torch.tensor([0.3, 0.6] * 2)

    def terms() -> PreferenceTerms:
        pair = Pair()
        pair.winner, pair.loser = velocity(photos, eps).chunk(2)
        with torch.no_grad(), reference_policy(transformer):
            reference = tiny_policy(transformer, controlnet, photos, t, eps)
        pair.reference_winner, pair.reference_loser = reference.chunk(2)
        winner, loser = tiny_policy(transformer, controlnet, photos, t, eps).chunk(2)
        return pair.against(winner, loser, torch.full((2,), 1000.0))

    first = terms()
    assert first.loss.item() == pytest.approx(LN_2, abs=1e-6)
    assert first.implicit_accuracy == 0.5
    optimizer = torch.optim.SGD(parameters, lr=1e-3)
    first.loss.backward()
    optimizer.step()
    second = terms()
    assert second.loss < first.loss
    assert second.implicit_accuracy == 1


# Eq. 5


def test_distillation_never_teaches_the_teacher() -> None:
    """Not even one whose weights were left trainable."""
    student, teacher = nn.Linear(8, 8), nn.Linear(8, 8)
    distillation_loss(student(noise(0, 2, 3, 8)), teacher(noise(1, 2, 3, 8))).backward()
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert all(parameter.grad is not None for parameter in student.parameters())
