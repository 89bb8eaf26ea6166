from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from accerl.policies.action_tokens import soft_labels, to_actions, to_tokens

bins = st.integers(2, 1024)
actions = st.lists(st.floats(-1, 1, width=32), min_size=1, max_size=20)


def test_four_bins_by_hand():
    # bins of width .5 from -1 up
    values = torch.tensor([-1.0, -0.6, -0.5, 0.0, 0.49, 0.99])
    assert to_tokens(values, 4).tolist() == [0, 0, 1, 2, 2, 3]
    assert to_actions(torch.arange(4), 4).tolist() == [-0.75, -0.25, 0.25, 0.75]


@given(bins)
def test_every_token_survives_the_way_to_an_action_and_back(num_bins):
    tokens = torch.arange(num_bins)
    assert torch.equal(to_tokens(to_actions(tokens, num_bins), num_bins), tokens)


@given(actions, bins)
def test_an_action_comes_back_within_half_a_bin(values, num_bins):
    action = torch.tensor(values)
    restored = to_actions(to_tokens(action, num_bins), num_bins)
    assert restored.abs().max() < 1
    assert (restored - action).abs().max() <= 1 / num_bins + 1e-6


@given(st.floats(1, 1e6, width=32), bins)
def test_what_lies_outside_falls_into_the_outermost_bins(value, num_bins):
    assert to_tokens(torch.tensor([-value, value]), num_bins).tolist() == [0, num_bins - 1]


@given(st.data(), bins, st.floats(0.1, 20))
def test_soft_labels_sum_to_one_and_are_highest_at_the_token(data, num_bins, width):
    token = torch.tensor([data.draw(st.integers(0, num_bins - 1))])
    labels = soft_labels(token, num_bins, width)
    assert labels.shape == (1, num_bins)
    assert labels.sum().item() == pytest.approx(1, abs=1e-5)
    assert labels[0, token] == labels.max()


def test_soft_labels_are_a_gaussian_in_bins():
    labels = soft_labels(torch.tensor([[5]]), 11, width=2.0)[0, 0]
    assert labels[7] / labels[5] == pytest.approx(torch.exp(torch.tensor(-0.5)).item())
    assert torch.allclose(labels, labels.flip(0))
