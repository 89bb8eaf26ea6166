"""Each objective against numbers worked out by hand: its value, its weights, and the gradient that they promise."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from accerl.rl.objectives import behaviour_kl, gipo, masked_mean, ppo, reference_kl

KL_OF_THREE = 0.5 * math.log(0.5 / 0.2) + 0.25 * math.log(0.25 / 0.3) + 0.25 * math.log(0.25 / 0.5)
"""KL(p || q) of p = (.5, .25, .25) and q = (.2, .3, .5)."""


def everywhere(values: Tensor) -> Tensor:
    return torch.ones(values.shape, dtype=torch.bool)


def gradient(loss: Tensor, at: Tensor) -> Tensor:
    (found,) = torch.autograd.grad(loss, at, retain_graph=True)
    return found


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


def test_an_infinite_sigma_is_importance_sampling():
    log_ratio = torch.tensor([[math.log(2.0), math.log(0.1)]], requires_grad=True)
    loss, weight = gipo(log_ratio, torch.tensor([3.0]), everywhere(log_ratio), math.inf)
    assert weight.flatten().tolist() == pytest.approx([2.0, 0.1])
    assert loss.item() == pytest.approx(-3 * (2 + 0.1) / 2)


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


@given(
    st.lists(st.tuples(st.floats(-0.18, 0.18), st.floats(-3, 3, width=32)), min_size=1, max_size=6),
)
def test_inside_the_clip_ppo_is_importance_sampling(pairs):
    log_ratio = torch.tensor([[value] for value, _ in pairs], requires_grad=True)
    advantage = torch.tensor([value for _, value in pairs])
    clipped = ppo(log_ratio, advantage, everywhere(log_ratio), clip=0.2)
    plain = gipo(log_ratio, advantage, everywhere(log_ratio), math.inf)
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


def test_the_mean_of_nothing_is_zero():
    assert masked_mean(torch.ones(2, 2), torch.zeros(2, 2, dtype=torch.bool)) == 0
