"""The ratio of a token, of an action and of a chunk."""

from __future__ import annotations

import math
from typing import get_args

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from accerl.rl.granularity import Granularity, at_granularity
from accerl.rl.objectives import gipo, ppo

# two actions of two tokens; of the second decision only the first action was executed
LOG_RATIO = torch.tensor([[1.0, 2.0, 3.0, 4.0], [0.5, 0.25, math.nan, 9.0]])
MASK = torch.tensor([[True, True, True, True], [True, True, False, False]])


def test_tokens_stay_what_they_are():
    assert at_granularity(LOG_RATIO, MASK, 2, "token") is LOG_RATIO


def test_an_action_has_the_sum_of_its_tokens():
    found = at_granularity(LOG_RATIO, MASK, 2, "action")
    assert found[MASK].tolist() == [3, 3, 7, 7, 0.75, 0.75]


def test_a_chunk_has_the_sum_of_what_was_executed():
    found = at_granularity(LOG_RATIO, MASK, 2, "chunk")
    assert found[MASK].tolist() == [10, 10, 10, 10, 0.75, 0.75]


@pytest.mark.parametrize("granularity", get_args(Granularity))
def test_a_policy_with_one_log_prob_for_the_chunk_has_only_that(granularity):
    log_ratio = torch.tensor([[0.3], [0.4]])
    assert at_granularity(log_ratio, torch.ones(2, 1).bool(), 8, granularity) is log_ratio


def test_an_action_of_one_token_is_that_token():
    log_ratio = torch.arange(12.0).view(3, 4)
    torch.testing.assert_close(at_granularity(log_ratio, torch.ones(3, 4).bool(), 4, "action"), log_ratio)


def test_tokens_that_do_not_divide_into_actions_are_refused():
    with pytest.raises(ValueError, match="num_tokens: 4 is not a multiple of chunk_length=3"):
        at_granularity(LOG_RATIO, MASK, 3, "action")


def test_sums_of_bfloat16_are_taken_in_float32():
    log_ratio = torch.full((1, 512), 1 / 512, dtype=torch.bfloat16)
    assert at_granularity(log_ratio, torch.ones(1, 512).bool(), 8, "chunk")[0, 0].item() == 1.0


@pytest.mark.parametrize("granularity", get_args(Granularity))
def test_each_token_keeps_its_own_gradient(granularity):
    log_ratio = LOG_RATIO.clone().requires_grad_()
    found = at_granularity(log_ratio, MASK, 2, granularity)
    (gradient,) = torch.autograd.grad(found[MASK].sum(), log_ratio)
    assert gradient.tolist() == MASK.float().tolist()


log_ratios = st.lists(st.lists(st.floats(-2, 2, width=32), min_size=4, max_size=4), min_size=1, max_size=4)


@given(log_ratios)
def test_the_gradient_is_that_of_the_joint_ratio_over_its_number_of_tokens(rows):
    """Against the plain definition: one ratio for each decision, differentiated through the sum."""
    tokens = torch.tensor(rows, requires_grad=True)
    mask = torch.ones(tokens.shape, dtype=torch.bool)
    advantage = torch.linspace(-1, 2, len(rows))
    loss, weight = gipo(at_granularity(tokens, mask, 2, "chunk"), advantage, mask, sigma=1.0)
    plain, plain_weight = gipo(tokens.sum(1, keepdim=True), advantage, mask[:, :1], sigma=1.0)
    torch.testing.assert_close(loss, plain)
    torch.testing.assert_close(weight, plain_weight.expand(-1, 4))
    (found,) = torch.autograd.grad(loss, tokens)
    (expected,) = torch.autograd.grad(plain, tokens)
    torch.testing.assert_close(found, expected / 4)


@pytest.mark.parametrize("granularity", get_args(Granularity))
def test_on_policy_every_granularity_has_the_same_gradient(granularity):
    tokens = torch.zeros(2, 4, requires_grad=True)
    loss, _ = ppo(at_granularity(tokens, MASK, 2, granularity), torch.tensor([3.0, -1.0]), MASK, clip=0.2)
    (gradient,) = torch.autograd.grad(loss, tokens)
    torch.testing.assert_close(gradient, torch.tensor([[-0.5] * 4, [1 / 6, 1 / 6, 0, 0]]))
