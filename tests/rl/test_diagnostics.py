from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from accerl.rl.diagnostics import explained_variance, lag_diagnostics, quantile, token_diagnostics

ALL = torch.ones(2, 5, dtype=torch.bool)


def effective_sample_size(weight: torch.Tensor) -> float:
    return token_diagnostics(torch.zeros(2, 5), weight, ALL)["effective_sample_size"]


@pytest.mark.parametrize("weight", [1.0, 0.25, 3.0])
def test_equal_weights_are_worth_all_their_samples(weight):
    assert effective_sample_size(torch.full((2, 5), weight)) == pytest.approx(1.0)


def test_one_weight_that_dominates_is_worth_one_sample():
    weight = torch.zeros(2, 5)
    weight[1, 3] = 7.0
    assert effective_sample_size(weight) == pytest.approx(1 / 10)


def test_no_weight_at_all_is_worth_nothing():
    assert effective_sample_size(torch.zeros(2, 5)) == 0.0


def test_two_weights_by_hand():
    # (1 + 3)^2 / (10 * (1 + 9)) = 0.16
    weight = torch.zeros(2, 5)
    weight[0, 0], weight[0, 1] = 1.0, 3.0
    assert effective_sample_size(weight) == pytest.approx(0.16)


def test_the_dead_fraction_counts_weights_below_a_thousandth():
    weight = torch.tensor([[0.0, 5e-4, 2e-3, 1.0]])
    metrics = token_diagnostics(torch.zeros(1, 4), weight, torch.ones(1, 4, dtype=torch.bool))
    assert metrics["dead_fraction"] == 0.5


def test_divergence_and_ratio_by_hand():
    metrics = token_diagnostics(torch.tensor([[math.log(2.0), 0.0]]), torch.ones(1, 2), torch.ones(1, 2).bool())
    assert metrics["behaviour_kl"] == pytest.approx((2 - 1 - math.log(2)) / 2)
    assert metrics["abs_log_ratio_p95"] == pytest.approx(math.log(2))


def test_the_largest_log_ratio_and_the_mean_weight_by_hand():
    metrics = token_diagnostics(torch.tensor([[0.1, -0.7]]), torch.tensor([[1.1, 0.0]]), torch.ones(1, 2).bool())
    assert metrics["abs_log_ratio_max"] == pytest.approx(0.7)
    assert metrics["weight_mean"] == pytest.approx(0.55)


def test_nothing_overflows_however_far_the_policies_are_apart():
    metrics = token_diagnostics(torch.tensor([[1e4, -1e4]]), torch.tensor([[0.0, 0.0]]), torch.ones(1, 2).bool())
    assert all(math.isfinite(value) for value in metrics.values())


def test_the_lag_by_hand():
    found = lag_diagnostics(torch.tensor([0] * 19 + [5]))
    assert (found["policy_lag_mean"], found["policy_lag_p95"], found["policy_lag_max"]) == (0.25, 0, 5)
    assert lag_diagnostics(torch.tensor([], dtype=torch.int64)) == {}


def test_each_bin_of_the_lag_holds_what_is_below_the_next_one():
    found = lag_diagnostics(torch.tensor([0, 1, 2, 3, 4, 7, 63, 64, 900, 1]))
    shares = {name: value for name, value in found.items() if name.startswith("policy_lag_share")}
    expected = {0: 0.1, 1: 0.2, 2: 0.2, 4: 0.2, 8: 0, 16: 0, 32: 0.1, 64: 0.2}
    assert shares == pytest.approx({f"policy_lag_share_{low}": share for low, share in expected.items()})


def test_masked_tokens_do_not_enter():
    mask = torch.tensor([[True, False], [True, False]])
    seen = token_diagnostics(torch.tensor([[0.1, 9.0], [-0.3, 9.0]]), torch.tensor([[1.0, 9.0], [1.0, 9.0]]), mask)
    alone = token_diagnostics(torch.tensor([[0.1], [-0.3]]), torch.ones(2, 1), torch.ones(2, 1).bool())
    assert seen == alone
    assert token_diagnostics(torch.zeros(1, 1), torch.zeros(1, 1), torch.zeros(1, 1).bool()) == {}


def test_explained_variance_is_one_for_the_truth_and_zero_for_the_mean():
    target = torch.tensor([1.0, 2.0, 6.0])
    assert explained_variance(target, target) == 1.0
    assert explained_variance(target.mean().expand(3), target) == pytest.approx(0.0, abs=1e-6)
    assert explained_variance(target + 5, target) == pytest.approx(1.0), "a constant error explains nothing away"
    assert explained_variance(-target, target) == pytest.approx(-3.0)
    assert explained_variance(target, torch.full((3,), 2.0)) == 0.0


def test_the_quantile_is_the_nearest_rank():
    values = torch.arange(1.0, 21.0)[torch.randperm(20, generator=torch.Generator().manual_seed(0))]
    assert quantile(values, 0.95) == 19.0
    assert quantile(values, 0.951) == 20.0
    assert quantile(values, 1.0) == 20.0
    assert quantile(values, 0.0) == 1.0
    assert quantile(torch.tensor([3.0]), 0.95) == 3.0


@given(st.lists(st.floats(-100, 100, width=32), min_size=1, max_size=40), st.floats(0.01, 1))
def test_at_least_that_share_of_the_values_is_not_above_the_quantile(values, q):
    found = quantile(torch.tensor(values), q)
    assert found in torch.tensor(values).tolist()
    assert sum(value <= found for value in torch.tensor(values).tolist()) >= q * len(values) - 1e-6
    assert sum(value < found for value in torch.tensor(values).tolist()) < q * len(values) + 1e-6
