"""Generalised advantage estimation against numbers worked out by hand, and segment by segment."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from accerl.rl.gae import gae

REWARD = torch.tensor([1.0, 0.0, 2.0])
VALUE = torch.tensor([0.5, 1.0, 1.5])


def one_segment(bootstrap: float, terminal: bool, discount: float = 0.5, trace: float = 0.5) -> Tensor:
    return gae(REWARD, VALUE, torch.tensor([bootstrap]), torch.tensor([3]), torch.tensor([terminal]), discount, trace)


def test_a_terminal_step_stops_the_bootstrap():
    # delta = [1 + .5*1 - .5, 0 + .5*1.5 - 1, 2 - 1.5] = [1, -.25, .5]; A_t = delta_t + .25 A_{t+1}
    assert one_segment(bootstrap=4.0, terminal=True).tolist() == [0.96875, -0.125, 0.5]


def test_a_truncated_segment_bootstraps_from_the_value_beyond_it():
    # the last delta is 2 + .5*4 - 1.5 = 2.5
    assert one_segment(bootstrap=4.0, terminal=False).tolist() == [1.09375, 0.375, 2.5]


def test_what_lies_beyond_a_terminal_step_is_not_even_read():
    assert one_segment(bootstrap=float("nan"), terminal=True).tolist() == [0.96875, -0.125, 0.5]


def test_without_a_trace_the_advantage_is_the_temporal_difference():
    assert one_segment(bootstrap=4.0, terminal=False, trace=0.0).tolist() == [1.0, -0.25, 2.5]


def test_a_full_trace_gives_the_discounted_return_less_the_value():
    # returns: 2 + .5*4 = 4; 0 + .5*4 = 2; 1 + .5*2 = 2
    assert one_segment(bootstrap=4.0, terminal=False, trace=1.0).tolist() == [1.5, 1.0, 2.5]


def test_nothing_flows_from_one_segment_into_the_one_before():
    advantage = gae(
        reward=torch.tensor([1.0, 1.0, 100.0]),
        value=torch.tensor([0.0, 0.0, 50.0]),
        bootstrap_value=torch.tensor([2.0, 0.0]),
        lengths=torch.tensor([2, 1]),
        terminal=torch.tensor([False, True]),
        discount=1.0,
        trace=1.0,
    )
    assert advantage.tolist() == [4.0, 3.0, 50.0]


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_advantages_are_float32_whatever_the_critic_computes_in(dtype):
    advantage = gae(
        REWARD, VALUE.to(dtype), torch.zeros(1, dtype=dtype), torch.tensor([3]), torch.tensor([True]), 0.5, 0.5
    )
    assert advantage.dtype == torch.float32
    assert advantage.tolist() == [0.96875, -0.125, 0.5]


numbers = st.floats(-10, 10, width=32)
segments = st.lists(
    st.tuples(st.lists(st.tuples(numbers, numbers), min_size=1, max_size=7), numbers, st.booleans()),
    min_size=1,
    max_size=5,
)
fractions = st.floats(0, 1, width=32)


@given(segments, fractions, fractions)
def test_packed_segments_give_what_the_equation_gives_for_each_alone(parts, discount, trace):
    packed = gae(
        reward=torch.tensor([reward for steps, _, _ in parts for reward, _ in steps]),
        value=torch.tensor([value for steps, _, _ in parts for _, value in steps]),
        bootstrap_value=torch.tensor([bootstrap for _, bootstrap, _ in parts]),
        lengths=torch.tensor([len(steps) for steps, _, _ in parts]),
        terminal=torch.tensor([terminal for _, _, terminal in parts]),
        discount=discount,
        trace=trace,
    )
    expected = [
        advantage
        for steps, bootstrap, terminal in parts
        for advantage in by_definition(steps, bootstrap, terminal, discount, trace)
    ]
    assert packed.tolist() == pytest.approx(expected, rel=1e-4, abs=1e-3)


def by_definition(
    steps: list[tuple[float, float]], bootstrap: float, terminal: bool, discount: float, trace: float
) -> list[float]:
    """A_t as the sum over k of (discount trace)^k delta_{t+k}, in python's own floats."""
    beyond = [value for _, value in steps[1:]] + [0.0 if terminal else bootstrap]
    deltas = [reward + discount * after - value for (reward, value), after in zip(steps, beyond, strict=True)]
    return [
        sum((discount * trace) ** k * delta for k, delta in enumerate(deltas[start:])) for start in range(len(deltas))
    ]
