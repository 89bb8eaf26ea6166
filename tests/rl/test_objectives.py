"""Each objective against numbers worked out by hand: its value, its weights, and the gradient that they promise."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from accerl.rl.objectives import (
    LOG_RATIO_CEILING,
    behaviour_kl,
    cispo,
    decoupled_ppo,
    dual_clip_ppo,
    gipo,
    importance_sampling,
    interpolated_proximal,
    masked_mean,
    mis,
    ppo,
    reference_kl,
    sapo,
    tis,
)

KL_OF_THREE = 0.5 * math.log(0.5 / 0.2) + 0.25 * math.log(0.25 / 0.3) + 0.25 * math.log(0.25 / 0.5)
"""KL(p || q) of p = (.5, .25, .25) and q = (.2, .3, .5)."""


def everywhere(values: Tensor) -> Tensor:
    return torch.ones(values.shape, dtype=torch.bool)


def gradient(loss: Tensor, at: Tensor) -> Tensor:
    (found,) = torch.autograd.grad(loss, at, retain_graph=True)
    return found


def one_token(objective, ratio: float, advantage: float, **settings) -> tuple[float, float, float]:
    """Loss, weight and gradient of a batch that is one token."""
    log_ratio = torch.tensor([[math.log(ratio)]], requires_grad=True)
    loss, weight = objective(log_ratio, torch.tensor([advantage]), torch.tensor([[True]]), **settings)
    return loss.item(), weight.item(), gradient(loss, log_ratio).item()


# --- GIPO -------------------------------------------------------------------------------------------------------------


def test_gipo_by_hand():
    # sigma = .5: u = exp(l - 2 l^2), so l = 0, .5 give 1 and l = -.5, 1 give 1/e
    log_ratio = torch.tensor([[0.0, 0.5], [-0.5, 1.0]], requires_grad=True)
    advantage = torch.tensor([2.0, -1.0])
    loss, weight = gipo(log_ratio, advantage, everywhere(log_ratio), sigma=0.5)
    e = math.exp(-1)
    assert weight.flatten().tolist() == pytest.approx([1, 1, e, e])
    assert loss.item() == pytest.approx(-(2 * 1 + 2 * 1 - e - e) / 4)
    assert gradient(loss, log_ratio).flatten().tolist() == pytest.approx([-0.5, -0.5, e / 4, e / 4])


def test_masked_tokens_enter_neither_the_mean_nor_the_gradient():
    log_ratio = torch.tensor([[0.0, 5.0], [0.5, 7.0]], requires_grad=True)
    mask = torch.tensor([[True, False], [True, False]])
    loss, _ = gipo(log_ratio, torch.tensor([2.0, -1.0]), mask, sigma=0.5)
    assert loss.item() == pytest.approx(-(2 - 1) / 2)
    assert gradient(loss, log_ratio).flatten().tolist() == pytest.approx([-1.0, 0.0, 0.5, 0.0])


@pytest.mark.parametrize("sigma", [0.2, 1.0, math.inf])
def test_the_gradient_of_gipo_is_that_of_minus_weight_times_advantage_times_log_prob(sigma):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 2, 5, generator=generator, requires_grad=True)
    chosen = torch.randint(5, (3, 2, 1), generator=generator)
    log_prob = torch.log_softmax(logits, -1).gather(-1, chosen).squeeze(-1)
    behaviour = log_prob.detach() + 0.3 * torch.randn(3, 2, generator=generator)
    advantage = torch.randn(3, generator=generator)
    loss, weight = gipo(log_prob - behaviour, advantage, everywhere(behaviour), sigma)
    promised = -(weight.detach() * advantage[:, None] * log_prob).mean()
    torch.testing.assert_close(gradient(loss, logits), gradient(promised, logits))


@given(
    st.lists(st.floats(-1e30, 1e30) | st.floats(-50, 50), min_size=1, max_size=6),
    st.floats(0.01, 5),
)
def test_the_weight_of_gipo_is_bounded_and_nothing_is_ever_nan(log_ratios, sigma):
    log_ratio = torch.tensor([log_ratios], requires_grad=True)
    loss, weight = gipo(log_ratio, torch.tensor([1.0]), everywhere(log_ratio), sigma)
    assert weight.min() >= 0
    assert weight.max() <= math.exp(sigma**2 / 2) * (1 + 1e-4)
    assert loss.isfinite()
    assert gradient(loss, log_ratio).isfinite().all()


@pytest.mark.parametrize("sigma", [0.2, 1.0, 2.0])
def test_the_bound_is_reached_where_the_ratio_is_exp_sigma_squared(sigma):
    _, weight = gipo(torch.tensor([[sigma**2]]), torch.tensor([1.0]), torch.tensor([[True]]), sigma)
    assert weight.item() == pytest.approx(math.exp(sigma**2 / 2))


@pytest.mark.parametrize(
    ("kernel", "log_ratio", "expected"),
    [
        ("gaussian", 1.0, math.exp(1 - 2)),  # exp(l - l^2 / (2 * 0.25))
        ("laplace", 1.0, math.exp(1 - 2)),  # exp(l - |l| / 0.5)
        ("laplace", -1.0, math.exp(-1 - 2)),
        ("cauchy", 1.0, math.e / 5),  # e^l / (1 + l^2 / 0.25)
        ("cauchy", -1.0, math.exp(-1) / 5),
    ],
)
def test_the_kernels_by_hand(kernel, log_ratio, expected):
    _, weight = gipo(torch.tensor([[log_ratio]]), torch.tensor([1.0]), torch.tensor([[True]]), 0.5, kernel=kernel)
    assert weight.item() == pytest.approx(expected)


@pytest.mark.parametrize("kernel", ["gaussian", "laplace", "cauchy"])
def test_negative_advantages_may_have_a_width_of_their_own(kernel):
    log_ratio, mask = torch.tensor([[0.7], [0.7], [0.7]]), torch.ones(3, 1, dtype=torch.bool)
    _, weight = gipo(log_ratio, torch.tensor([1.0, -1.0, 0.0]), mask, 0.5, sigma_negative=0.2, kernel=kernel)
    _, wide = gipo(log_ratio, torch.ones(3), mask, 0.5, kernel=kernel)
    _, narrow = gipo(log_ratio, torch.ones(3), mask, 0.2, kernel=kernel)
    assert weight.flatten().tolist() == pytest.approx([wide[0].item(), narrow[0].item(), wide[0].item()])


@pytest.mark.parametrize("kernel", ["gaussian", "laplace", "cauchy"])
def test_an_infinite_sigma_is_importance_sampling(kernel):
    log_ratio = torch.tensor([[math.log(2.0), math.log(0.1)]], requires_grad=True)
    loss, weight = gipo(log_ratio, torch.tensor([3.0]), everywhere(log_ratio), math.inf, kernel=kernel)
    assert weight.flatten().tolist() == pytest.approx([2.0, 0.1])
    assert loss.item() == pytest.approx(-3 * (2 + 0.1) / 2)


# --- importance sampling, truncated, masked, and with clipped weights -----------------------------------------------


@pytest.mark.parametrize(
    ("objective", "settings", "ratio", "weight"),
    [
        (importance_sampling, {}, 2.5, 2.5),
        (tis, {"cap": 2.0}, 0.5, 0.5),
        (tis, {"cap": 2.0}, 2.5, 2.0),
        (mis, {"low": 0.5, "high": 2.0}, 1.9, 1.9),
        (mis, {"low": 0.5, "high": 2.0}, 2.1, 0.0),
        (mis, {"low": 0.5, "high": 2.0}, 0.4, 0.0),
        (mis, {"low": 0.0, "high": 2.0}, 0.001, 0.001),
        (cispo, {"clip_high": 0.5}, 3.0, 1.5),
        (cispo, {"clip_high": 0.5}, 0.1, 0.1),
        (cispo, {"clip_high": 0.5, "clip_low": 0.2}, 0.1, 0.8),
        (cispo, {"clip_high": 0.5, "clip_low": 0.2}, 1.2, 1.2),
    ],
)
@pytest.mark.parametrize("advantage", [3.0, -2.0])
def test_weights_that_do_not_look_at_the_advantage_by_hand(objective, settings, ratio, weight, advantage):
    expected = (-weight * advantage, weight, -weight * advantage)
    assert one_token(objective, ratio, advantage, **settings) == pytest.approx(expected, rel=1e-6)


def test_a_rejected_token_still_counts_in_the_mean():
    log_ratio = torch.tensor([[0.0, 5.0, 0.0, -5.0]])
    loss, _ = mis(log_ratio, torch.tensor([1.0]), everywhere(log_ratio), low=0.5, high=2.0)
    assert loss.item() == pytest.approx(-2 / 4)


def test_a_huge_ratio_saturates_and_keeps_its_gradient():
    log_ratio = torch.tensor([[30.0]], requires_grad=True)
    loss, weight = importance_sampling(log_ratio, torch.tensor([1.0]), everywhere(log_ratio))
    assert weight.item() == -loss.item() == pytest.approx(math.exp(LOG_RATIO_CEILING))
    assert gradient(loss, log_ratio).item() == pytest.approx(-math.exp(LOG_RATIO_CEILING))


# --- SAPO -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ratio", "advantage", "value", "weight"),
    [
        # tau = 1 and 2 for positive and negative advantages; sigmoid(ln 3) = 3/4, so that 4 p (1 - p) = 3/4
        (1.0, 1.0, 4 * 0.5, 1.0),
        (1.0, -1.0, 4 / 2 * 0.5, 1.0),
        (1 + math.log(3), 1.0, 4 * 0.75, 0.75 * (1 + math.log(3))),
        (1 + math.log(3) / 2, -1.0, 4 / 2 * 0.75, 0.75 * (1 + math.log(3) / 2)),
        (1 - math.log(3) / 2, -1.0, 4 / 2 * 0.25, 0.75 * (1 - math.log(3) / 2)),
    ],
)
def test_sapo_by_hand(ratio, advantage, value, weight):
    expected = (-value * advantage, weight, -weight * advantage)
    found = one_token(sapo, ratio, advantage, temperature=1.0, temperature_negative=2.0)
    assert found == pytest.approx(expected, rel=1e-5)


# --- PPO --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ratio", "advantage", "surrogate", "weight"),
    [
        (1.0, 1.0, 1.0, 1.0),
        (1.1, 1.0, 1.1, 1.1),
        (1.5, 1.0, 1.2, 0.0),  # more of a good thing than the clip lets through
        (0.5, 1.0, 0.5, 0.5),  # the way back is free
        (0.9, -2.0, -1.8, 0.9),
        (0.5, -2.0, -1.6, 0.0),
        (1.5, -2.0, -3.0, 1.5),
    ],
)
def test_ppo_by_hand(ratio, advantage, surrogate, weight):
    log_ratio = torch.tensor([[math.log(ratio)]], requires_grad=True)
    objective = ppo(log_ratio, torch.tensor([advantage]), torch.tensor([[True]]), clip=0.2)
    assert objective.loss.item() == pytest.approx(-surrogate, rel=1e-6)
    assert objective.weight.item() == pytest.approx(weight, rel=1e-6)
    assert gradient(objective.loss, log_ratio).item() == pytest.approx(-weight * advantage, rel=1e-6)


@pytest.mark.parametrize(
    ("ratio", "advantage", "surrogate", "weight"),
    [
        (1.25, 1.0, 1.25, 1.25),
        (1.5, 1.0, 1.3, 0.0),
        (0.7, -1.0, -0.9, 0.0),
        (0.95, -1.0, -0.95, 0.95),
        (1.5, -1.0, -1.5, 1.5),
    ],
)
def test_an_asymmetric_clip_by_hand(ratio, advantage, surrogate, weight):
    expected = (-surrogate, weight, -weight * advantage)
    assert one_token(ppo, ratio, advantage, clip=0.1, clip_high=0.3) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(
    ("ratio", "advantage", "surrogate", "weight"),
    [
        (2.9, -2.0, -5.8, 2.9),
        (3.5, -2.0, -6.0, 0.0),  # not below c A
        (0.5, -2.0, -1.6, 0.0),
        (3.5, 2.0, 2.4, 0.0),
        (0.5, 2.0, 1.0, 0.5),
    ],
)
def test_the_dual_clip_by_hand(ratio, advantage, surrogate, weight):
    expected = (-surrogate, weight, -weight * advantage)
    assert one_token(dual_clip_ppo, ratio, advantage, clip=0.2, dual_clip=3.0) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(
    ("ratio", "proximal", "cap", "advantage", "surrogate", "weight"),
    [
        (2.2, 2.0, math.inf, 1.0, 2.2, 2.2),  # r = 1.1 inside the clip: importance sampling
        (3.0, 2.0, math.inf, 1.0, 2 * 1.2, 0.0),  # r = 1.5
        (1.0, 2.0, math.inf, -1.0, -2 * 0.8, 0.0),  # r = 0.5, although rho = 1
        (1.0, 2.0, math.inf, 1.0, 1.0, 1.0),
        (2.2, 2.0, 1.5, 1.0, 1.5 * 1.1, 1.5 * 1.1),  # the correction is truncated, r is not
    ],
)
def test_decoupled_ppo_by_hand(ratio, proximal, cap, advantage, surrogate, weight):
    proximal_log_ratio = torch.tensor([[math.log(proximal)]])
    settings = {"proximal_log_ratio": proximal_log_ratio, "clip": 0.2, "weight_cap": cap}
    expected = (-surrogate, weight, -weight * advantage)
    assert one_token(decoupled_ppo, ratio, advantage, **settings) == pytest.approx(expected, rel=1e-6)


def test_decoupled_ppo_is_ppo_where_the_proximal_policy_is_that_which_acted():
    log_ratio = torch.linspace(-1, 1, 20).view(4, 5).requires_grad_()
    advantage = torch.tensor([1.0, -1.0, 2.0, -0.5])
    mask = everywhere(log_ratio)
    decoupled = decoupled_ppo(log_ratio, advantage, mask, torch.zeros(4, 5), clip=0.2, clip_high=0.3)
    coupled = ppo(log_ratio, advantage, mask, clip=0.2, clip_high=0.3)
    torch.testing.assert_close(decoupled, coupled)
    torch.testing.assert_close(gradient(decoupled.loss, log_ratio), gradient(coupled.loss, log_ratio))


def test_the_proximal_policy_is_interpolated_by_age():
    # one version before the newest: all of the way from mu to pi but its last 1/lag; lags 0 and 1 give mu itself
    log_prob = torch.full((4, 1), -1.0, requires_grad=True)
    found = interpolated_proximal(log_prob, torch.full((4, 1), -5.0), torch.tensor([0, 1, 2, 4]))
    assert found.flatten().tolist() == [0.0, 0.0, 2.0, 3.0]
    assert not found.requires_grad


def test_with_an_interpolated_proximal_policy_the_clip_acts_on_the_root_of_the_ratio():
    # rho = 1.1^4 at lag 4: r = 1.1 passes a clip of 0.2; at lag 1 it does not
    log_ratio = torch.full((2, 1), 4 * math.log(1.1))
    proximal = interpolated_proximal(log_ratio, torch.zeros(2, 1), torch.tensor([4, 1]))
    _, weight = decoupled_ppo(log_ratio, torch.ones(2), everywhere(log_ratio), proximal, clip=0.2)
    assert weight.flatten().tolist() == pytest.approx([1.1**4, 0.0])


@given(
    st.lists(st.tuples(st.floats(-0.18, 0.18), st.floats(-3, 3, width=32)), min_size=1, max_size=6),
)
def test_inside_the_clip_ppo_is_importance_sampling(pairs):
    log_ratio = torch.tensor([[value] for value, _ in pairs], requires_grad=True)
    advantage = torch.tensor([value for _, value in pairs])
    clipped = ppo(log_ratio, advantage, everywhere(log_ratio), clip=0.2)
    plain = importance_sampling(log_ratio, advantage, everywhere(log_ratio))
    torch.testing.assert_close(clipped, plain)
    torch.testing.assert_close(gradient(clipped.loss, log_ratio), gradient(plain.loss, log_ratio))


# --- divergences ------------------------------------------------------------------------------------------------------


def log_ratios_of_exact_samples(numerator: list[float]) -> Tensor:
    """log(q / p) at samples that hold the classes of p = (.5, .25, .25) in exactly those shares."""
    classes = torch.tensor([0, 0, 1, 2])
    return (torch.tensor(numerator)[classes] / torch.tensor([0.5, 0.25, 0.25])[classes]).log()[:, None]


def test_the_behaviour_divergence_is_unbiased():
    log_ratio = log_ratios_of_exact_samples([0.2, 0.3, 0.5])
    assert behaviour_kl(log_ratio, everywhere(log_ratio)).item() == pytest.approx(KL_OF_THREE, rel=1e-6)


def test_the_reference_divergence_is_unbiased_on_samples_of_the_policy():
    log_prob = torch.tensor([0.5, 0.5, 0.25, 0.25]).log()[:, None]
    reference = torch.tensor([0.2, 0.2, 0.3, 0.5]).log()[:, None]
    assert reference_kl(log_prob, reference, everywhere(log_prob)).item() == pytest.approx(KL_OF_THREE, rel=1e-6)


def test_the_behaviour_divergence_has_the_gradient_of_the_exact_one():
    logits = torch.tensor([0.2, 0.3, 0.5]).log().requires_grad_()
    classes = torch.tensor([0, 0, 1, 2])
    behaviour = torch.tensor([0.5, 0.25, 0.25])
    log_probs = torch.log_softmax(logits, -1)
    estimate = behaviour_kl((log_probs - behaviour.log())[classes, None], torch.ones(4, 1, dtype=torch.bool))
    exact = (behaviour * (behaviour.log() - log_probs)).sum()
    torch.testing.assert_close(gradient(estimate, logits), gradient(exact, logits))


@given(st.lists(st.floats(-20, 20, width=32), min_size=1, max_size=8))
def test_no_divergence_is_ever_negative(values):
    log_ratio = torch.tensor([values])
    assert behaviour_kl(log_ratio, everywhere(log_ratio)) >= 0
    assert reference_kl(torch.zeros_like(log_ratio), log_ratio, everywhere(log_ratio)) >= 0


@pytest.mark.parametrize("value", [1e4, 25.0, -1e4])
def test_a_divergence_stays_finite_and_goes_on_pulling(value):
    log_ratio = torch.tensor([[value, math.nan]], requires_grad=True)
    mask = torch.tensor([[True, False]])
    divergence = behaviour_kl(log_ratio, mask)
    slope = gradient(divergence, log_ratio)[0]
    assert divergence.isfinite()
    assert slope[1] == 0
    assert slope[0].item() == pytest.approx(math.exp(min(value, LOG_RATIO_CEILING)) - 1)


def test_the_mean_of_nothing_is_zero():
    assert masked_mean(torch.ones(2, 2), torch.zeros(2, 2, dtype=torch.bool)) == 0
