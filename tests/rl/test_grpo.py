"""Group-relative advantages against numbers worked out by hand and against numpy."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from accerl.rl.grpo import EPSILON, group_relative

# episodes of group 7 have the returns 1, 0 and 2; that of group -3 is alone; those of group 0 have 0.1 and 0.1
REWARD = torch.tensor([0.25, 0.75, 0.0, 5.0, 3.0, -1.0, 0.1, 0.1])
LENGTHS = torch.tensor([2, 1, 1, 2, 1, 1])
GROUP = torch.tensor([7, 7, -3, 7, 0, 0])


def test_an_episode_is_measured_against_its_group_and_so_is_each_of_its_decisions():
    # mean 1, deviation sqrt(2/3)
    one = 1 / (math.sqrt(2 / 3) + EPSILON)
    assert group_relative(REWARD, LENGTHS, GROUP).tolist() == pytest.approx([0, 0, -one, 0, one, one, 0, 0], abs=1e-6)


def test_without_the_deviation():
    found = group_relative(REWARD, LENGTHS, GROUP, scale=False)
    assert found.tolist() == pytest.approx([0, 0, -1, 0, 1, 1, 0, 0], abs=1e-6)


def test_leaving_oneself_out():
    # the others' means: 1 of (0, 2), 1.5 of (1, 2), 0.5 of (1, 0)
    found = group_relative(REWARD, LENGTHS, GROUP, scale=False, leave_one_out=True)
    assert found.tolist() == pytest.approx([0, 0, -1.5, 0, 1.5, 1.5, 0, 0], abs=1e-6)


@pytest.mark.parametrize("scale", [True, False])
@pytest.mark.parametrize("leave_one_out", [True, False])
def test_a_group_of_one_and_a_group_of_equals_teach_nothing(scale, leave_one_out):
    reward = torch.tensor([0.1] * 7 + [3.0])
    group = torch.tensor([0] * 7 + [1])
    found = group_relative(reward, torch.ones(8, dtype=torch.int64), group, scale, leave_one_out)
    assert found.abs().max() < 1e-6


episodes = st.lists(
    st.tuples(st.integers(0, 3), st.lists(st.floats(-5, 5, width=32), min_size=1, max_size=4)), min_size=1, max_size=8
)


@given(episodes, st.booleans(), st.booleans())
def test_it_agrees_with_numpy(episodes, scale, leave_one_out):
    returns = np.array([np.sum(np.array(rewards, dtype=np.float64)) for _, rewards in episodes])
    groups = np.array([group for group, _ in episodes])
    expected = []
    for i, (group, rewards) in enumerate(episodes):
        members = np.flatnonzero(groups == group)
        others = members[members != i] if leave_one_out and len(members) > 1 else members
        advantage = returns[i] - returns[others].mean()
        if scale:
            factor = len(members) / (len(members) - 1) if leave_one_out and len(members) > 1 else 1.0
            advantage /= factor * returns[members].std() + EPSILON
        expected += [advantage] * len(rewards)
    found = group_relative(
        torch.tensor([reward for _, rewards in episodes for reward in rewards]),
        torch.tensor([len(rewards) for _, rewards in episodes]),
        torch.tensor(groups),
        scale,
        leave_one_out,
    )
    assert found.dtype == torch.float32
    assert found.numpy() == pytest.approx(np.array(expected), rel=1e-4, abs=1e-4)


@given(episodes)
def test_the_order_of_episodes_does_not_matter(episodes):
    def advantages(parts: list[tuple[int, list[float]]]) -> list[torch.Tensor]:
        lengths = torch.tensor([len(rewards) for _, rewards in parts])
        reward = torch.tensor([reward for _, rewards in parts for reward in rewards])
        return list(
            group_relative(reward, lengths, torch.tensor([group for group, _ in parts])).split(lengths.tolist())
        )

    for ours, others in zip(advantages(episodes), reversed(advantages(episodes[::-1])), strict=True):
        torch.testing.assert_close(ours, others, rtol=1e-4, atol=1e-4)
