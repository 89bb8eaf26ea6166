"""V-trace against numbers worked out by hand, against its definition, and against generalised advantages."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from accerl.rl.gae import gae
from accerl.rl.vtrace import VTrace, vtrace

LOG_TWO = math.log(2.0)


def one_segment(log_ratio: list[float], terminal: bool = False, bootstrap: float = 4.0, **settings) -> VTrace:
    return vtrace(
        reward=torch.tensor([1.0, 0.0, 2.0]),
        value=torch.tensor([0.5, 1.0, 1.5]),
        bootstrap_value=torch.tensor([bootstrap]),
        lengths=torch.tensor([3]),
        terminal=torch.tensor([terminal]),
        log_ratio=torch.tensor(log_ratio),
        discount=0.5,
        **settings,
    )


def test_truncated_ratios_by_hand():
    # ratios 2, 1/2, 2 and bars of 1: rho = c = 1, .5, 1; delta = 1, -.25, 2.5 (see test_gae)
    # v - V: 2.5; .5 * -.25 + .5 * .5 * 2.5 = .5; 1 + .5 * .5 = 1.25
    # advantage: 2.5; -.25 + .5 * 2.5 = 1; 1 + .5 * .5 = 1.25
    found = one_segment([LOG_TWO, -LOG_TWO, LOG_TWO], trace=1.0)
    assert found.target.tolist() == pytest.approx([1.75, 1.5, 4.0])
    assert found.advantage.tolist() == pytest.approx([1.25, 1.0, 2.5])


def test_the_two_bars_bound_different_things():
    # rho = 2, .5, 2 under a bar of 3; c = 1, .5, 1 under a bar of 1, halved by the trace: .5, .25, .5
    # v - V: 2 * 2.5 = 5; .5 * -.25 + .5 * .25 * 5 = .5; 2 * 1 + .5 * .5 * .5 = 2.125
    # advantage: 2.5; -.25 + .25 * 5 = 1; 1 + .25 * .5 = 1.125
    found = one_segment([LOG_TWO, -LOG_TWO, LOG_TWO], trace=0.5, rho_bar=3.0, c_bar=1.0)
    assert found.target.tolist() == pytest.approx([2.625, 1.5, 6.5])
    assert found.advantage.tolist() == pytest.approx([1.125, 1.0, 2.5])


def test_a_terminal_step_stops_the_bootstrap_and_does_not_read_beyond():
    # delta = 1, -.25, .5: v - V = 1 + .25 * -.125, -.25 + .25 * .5, .5
    found = one_segment([0.0, 0.0, 0.0], terminal=True, bootstrap=math.nan, trace=0.5)
    assert found.advantage.tolist() == [0.96875, -0.125, 0.5]
    assert found.target.tolist() == [1.46875, 0.875, 2.0]


def test_actions_that_the_policy_would_never_choose_teach_the_critic_nothing():
    found = one_segment([-1e4, -1e4, -1e4], trace=1.0)
    assert found.target.tolist() == [0.5, 1.0, 1.5]


def test_no_gradient_flows_into_the_ratio():
    log_ratio = torch.zeros(1, requires_grad=True)
    one = torch.ones(1)
    found = vtrace(one, one, one, torch.tensor([1]), torch.tensor([False]), log_ratio, 0.9, 0.9)
    assert not found.target.requires_grad
    assert not found.advantage.requires_grad


numbers = st.floats(-10, 10, width=32)
segments = st.lists(
    st.tuples(st.lists(st.tuples(numbers, numbers, st.floats(-2, 2)), min_size=1, max_size=7), numbers, st.booleans()),
    min_size=1,
    max_size=5,
)
fractions = st.floats(0, 1, width=32)
bars = st.sampled_from([0.5, 1.0, 2.0, math.inf])


def packed(
    parts: list, discount: float, trace: float, **bars: float
) -> tuple[tuple[Tensor, Tensor, Tensor, Tensor, Tensor], VTrace]:
    columns = torch.tensor([step for steps, _, _ in parts for step in steps], dtype=torch.float32)
    reward, value, log_ratio = columns.unbind(1)
    bootstrap = torch.tensor([bootstrap for _, bootstrap, _ in parts])
    lengths = torch.tensor([len(steps) for steps, _, _ in parts])
    terminal = torch.tensor([terminal for _, _, terminal in parts])
    common = (reward, value, bootstrap, lengths, terminal)
    return common, vtrace(*common, log_ratio, discount, trace, **bars)


@given(segments, fractions, fractions, bars, bars)
def test_packed_segments_give_what_the_definition_gives_for_each_alone(parts, discount, trace, rho_bar, c_bar):
    _, found = packed(parts, discount, trace, rho_bar=rho_bar, c_bar=c_bar)
    expected = [
        by_definition(steps, bootstrap, terminal, discount, trace, rho_bar, c_bar)
        for steps, bootstrap, terminal in parts
    ]
    for ours, others in zip(found, zip(*expected, strict=True), strict=True):
        definition = np.concatenate(others)
        np.testing.assert_allclose(ours.numpy(), definition, rtol=1e-3, atol=1e-5 * (100 + np.abs(definition).max()))


def by_definition(
    steps: list[tuple[float, float, float]],
    bootstrap: float,
    terminal: bool,
    discount: float,
    trace: float,
    rho_bar: float,
    c_bar: float,
) -> tuple[np.ndarray, np.ndarray]:
    """Equation 1: a sum over t of products over i, for every s; in float64."""
    reward, value, log_ratio = np.array(steps, dtype=np.float64).T
    next_value = np.append(value[1:], 0.0 if terminal else bootstrap)
    ratio = np.exp(log_ratio)
    rho, c = np.minimum(rho_bar, ratio), trace * np.minimum(c_bar, ratio)
    target = value.copy()
    for s in range(len(steps)):
        for t in range(s, len(steps)):
            difference = reward[t] + discount * next_value[t] - value[t]
            target[s] += discount ** (t - s) * np.prod(c[s:t]) * rho[t] * difference
    next_target = np.append(target[1:], next_value[-1])
    return target, reward + discount * (trace * next_target + (1 - trace) * next_value) - value


@given(segments, fractions, fractions, bars.filter(lambda bar: bar >= 1))
def test_on_policy_it_is_generalised_advantage_estimation(parts, discount, trace, bar):
    on_policy = [([(r, v, 0.0) for r, v, _ in steps], bootstrap, terminal) for steps, bootstrap, terminal in parts]
    common, found = packed(on_policy, discount, trace, rho_bar=bar, c_bar=bar)
    advantage = gae(*common, discount, trace)
    torch.testing.assert_close(found.advantage, advantage, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(found.target, advantage + common[1], rtol=1e-5, atol=1e-4)


@given(segments, fractions)
def test_the_order_of_segments_does_not_matter(parts, trace):
    _, found = packed(parts, 0.9, trace)
    _, turned = packed(parts[::-1], 0.9, trace)
    sizes = [len(steps) for steps, _, _ in parts]
    for ours, others in zip(found, turned, strict=True):
        assert torch.equal(ours, torch.cat(others.split(sizes[::-1])[::-1]))
