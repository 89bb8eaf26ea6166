"""The exact biases and variances of the GridWorld study against other ways to the same numbers."""

from __future__ import annotations

import json
import math

import pytest
import torch

from benchmarks import gridworld_bias_variance as gridworld
from benchmarks.gridworld_bias_variance import Policy, Variant

PATH = gridworld.ascent(gridworld.NUM_STEPS)
POLICY = PATH[-1]
DRIFTED = gridworld.evaluate(POLICY.logits + 3 * gridworld.directions(1, seed=0)[0])
BEHAVIOURS = [(PATH[-1 - lag], lag) for lag in gridworld.LAGS] + [(DRIFTED, 64)]
PLAIN = Variant("importance_sampling", {}, True)
PPO = Variant("ppo", {"clip": 0.2}, True)
VARIANTS = [pytest.param(each, id=f"{each.objective} {each.setting}") for each in gridworld.variants()]


def roll(logits: torch.Tensor) -> tuple[float, float]:
    """Discounted return and number of decisions of an episode, step by step."""
    reward, transition = gridworld.grid()
    probability = logits.softmax(-1)
    at = torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64)
    total = decisions = 0.0
    for _ in range(500):
        chosen = at[:, None] * probability
        total += (chosen * reward).sum().item()
        decisions += at.sum().item()
        at = gridworld.DISCOUNT * torch.einsum("sa,sat->t", chosen, transition)
    return total, decisions


def decision_probability(behaviour: Policy) -> torch.Tensor:
    return (behaviour.visits[:, None] * behaviour.probability).flatten()


def test_the_way_to_the_goal_is_two_moves_long() -> None:
    always = torch.full((3, 4), -50.0, dtype=torch.float64)
    always[0, 3] = always[1, 1] = always[2, 3] = 50.0  # right, then down
    assert roll(always)[0] == pytest.approx(gridworld.DISCOUNT)
    policy = gridworld.evaluate(always)
    assert policy.visits.tolist() == pytest.approx([1 / 1.97, 0.97 / 1.97, 0.0])
    # up stays, a step is lost; down is as good; left stays
    assert policy.advantage[0].tolist() == pytest.approx([0.97**2 - 0.97, 0.0, 0.97**2 - 0.97, 0.0])


def test_policy_gradient_is_that_of_the_return() -> None:
    policy = PATH[20]
    exact = roll(policy.logits)[1] * gridworld.policy_gradient(policy, policy.visits)
    for state in range(gridworld.NUM_STATES):
        for action in range(gridworld.NUM_ACTIONS):
            step = torch.zeros_like(policy.logits)
            step[state, action] = 1e-4
            difference = roll(policy.logits + step)[0] - roll(policy.logits - step)[0]
            assert exact[state, action].item() == pytest.approx(difference / 2e-4, abs=1e-8)


@pytest.mark.parametrize("variant", VARIANTS)
def test_without_lag_no_objective_is_biased(variant: Variant) -> None:
    """All weights are 1 at rho = 1: of SAPO's gate too, and of decoupled PPO, whose proximal policy is mu then."""
    found = gridworld.errors(variant, POLICY, POLICY, 0, 512)
    assert found["bias_squared"] < 1e-20
    assert found["on_policy_bias_squared"] < 1e-20
    assert found["cosine"] == pytest.approx(1)
    assert found["variance"] == pytest.approx(gridworld.errors(PLAIN, POLICY, POLICY, 0, 512)["variance"])


@pytest.mark.parametrize(("behaviour", "lag"), BEHAVIOURS)
def test_importance_sampling_is_never_biased(behaviour: Policy, lag: int) -> None:
    assert math.sqrt(gridworld.errors(PLAIN, POLICY, behaviour, lag, 512)["bias_squared"]) < 1e-8


@pytest.mark.parametrize("kernel", ["gaussian", "laplace", "cauchy"])
def test_infinite_sigma_is_importance_sampling(kernel: str) -> None:
    variant = Variant("gipo", {"kernel": kernel, "sigma": math.inf}, False)
    for behaviour, lag in BEHAVIOURS:
        found = gridworld.decision_gradients(variant, POLICY, behaviour, lag)
        torch.testing.assert_close(found, gridworld.decision_gradients(PLAIN, POLICY, behaviour, lag))


@pytest.mark.parametrize("variant", VARIANTS)
def test_gradient_of_a_decision_is_that_of_its_loss_alone(variant: Variant) -> None:
    older, advantage = DRIFTED.logits.log_softmax(-1), POLICY.advantage
    found = gridworld.decision_gradients(variant, POLICY, DRIFTED, 16)
    for index in range(12):
        at = divmod(index, 4)
        logits = POLICY.logits.clone().requires_grad_()
        log_prob = logits.log_softmax(-1)[at].reshape(1, 1)
        variant.loss(log_prob, older[at].reshape(1, 1), advantage[at].reshape(1), 16).backward()
        assert logits.grad is not None
        torch.testing.assert_close(found[index], -logits.grad.flatten())


def test_gipo_expects_the_gradient_that_its_weights_say() -> None:
    sigma = 0.5
    log_ratio = POLICY.logits.log_softmax(-1) - DRIFTED.logits.log_softmax(-1)
    weight = torch.exp(log_ratio - log_ratio.square() / (2 * sigma**2))
    factor = DRIFTED.visits[:, None] * DRIFTED.probability * weight * POLICY.advantage
    by_hand = factor - POLICY.probability * factor.sum(-1, keepdim=True)  # d log pi(a) / d logit(b) = 1(a = b) - pi(b)
    gradients = gridworld.decision_gradients(Variant("gipo", {"sigma": sigma}, False), POLICY, DRIFTED, 16)
    torch.testing.assert_close(decision_probability(DRIFTED) @ gradients, by_hand.flatten())


@pytest.mark.parametrize("variant", [PLAIN, PPO, Variant("gipo", {"sigma": 1.0}, False)])
def test_enumeration_agrees_with_samples(variant: Variant) -> None:
    size = 200_000
    probability, gradients = decision_probability(DRIFTED), gridworld.decision_gradients(variant, POLICY, DRIFTED, 16)
    generator = torch.Generator().manual_seed(0)
    samples = gradients[torch.multinomial(probability, size, replacement=True, generator=generator)]
    standard_error = samples.std(0) / math.sqrt(size)
    assert ((samples.mean(0) - probability @ gradients).abs() <= 5 * standard_error + 1e-15).all()

    target = gridworld.policy_gradient(POLICY, DRIFTED.visits).square().sum()
    deviation = (samples - samples.mean(0)).square().sum(-1) / target
    one, many = (gridworld.errors(variant, POLICY, DRIFTED, 16, batch) for batch in (1, 512))
    assert abs(deviation.mean().item() - one["variance"]) < 5 * deviation.std().item() / math.sqrt(size)
    assert one["variance"] == pytest.approx(512 * many["variance"])


def test_after_pure_improvement_ppo_has_no_gradient_left() -> None:
    """Each ratio has moved where its advantage wants it, further than the clip."""
    log_ratio = (POLICY.probability / PATH[0].probability).log()
    assert (log_ratio * POLICY.advantage > 0).all()
    found = gridworld.errors(PPO, POLICY, PATH[0], 64, 512)
    assert (found["mse"], found["cosine"], found["direction_error"]) == (1.0, 0.0, 1.0)


def test_lag_reaches_the_proximal_policy() -> None:
    decoupled = Variant("decoupled_ppo", {"clip": 0.2}, False)
    by_ppo = gridworld.decision_gradients(PPO, POLICY, DRIFTED, 1)
    torch.testing.assert_close(gridworld.decision_gradients(decoupled, POLICY, DRIFTED, 1), by_ppo)
    plain = gridworld.decision_gradients(PLAIN, POLICY, DRIFTED, 1)
    torch.testing.assert_close(gridworld.decision_gradients(decoupled, POLICY, DRIFTED, 1000), plain)
    assert not torch.allclose(by_ppo, plain)


def test_at_the_break_even_batch_gipo_is_as_good_as_importance_sampling() -> None:
    rows = gridworld.measure("drift", POLICY, [DRIFTED], 64, 512)
    gipo = next(row for row in rows if row["default"] and row["objective"] == "gipo")
    at_512, batch = rows[0]["variance"], gipo["break_even_batch"]
    assert 1 < batch < 512
    assert at_512 * 512 / batch == pytest.approx(gipo["bias_squared"] + gipo["variance"] * 512 / batch)
    assert rows[0]["mse"] < gipo["mse"]
    assert rows[0]["break_even_batch"] is None


def test_every_objective_has_one_default() -> None:
    default = [each.objective for each in gridworld.variants() if each.default]
    assert sorted(default) == sorted({each.objective for each in gridworld.variants()})


def test_study_is_summarised_and_drawn(tmp_path) -> None:
    rows = gridworld.study(batch=512, num_directions=1, seed=0)
    assert all(row["mse"] == pytest.approx(row["bias_squared"] + row["variance"]) for row in rows)
    summary = gridworld.summarize(rows)
    assert [each["lag"] for each in summary] == [0, 4, 4, 4, 16, 16, 16, 64, 64, 64]
    for each in summary:
        those = [row for row in rows if (row["behaviour"], row["lag"]) == (each["behaviour"], each["lag"])]
        assert each["best_mse"] == min(row["mse"] for row in those)
        assert each["ppo_to_default_gipo"] == each["default_mse"]["ppo"] / each["default_mse"]["gipo"]
    json.dumps(summary, allow_nan=False)
    gridworld.draw(rows, 512, tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 10_000
