"""Advantage normalisation against numpy, over one rank and over two."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from accerl.rl.normalization import Moments, moments, normalize

lists = st.lists(st.floats(-100, 100, width=32), min_size=2, max_size=30)


def test_two_advantages_become_minus_one_and_one():
    assert normalize(torch.tensor([3.0, 7.0])).tolist() == pytest.approx([-1, 1], abs=1e-6)


def test_moments_are_sum_sum_of_squares_and_count():
    assert [float(x) for x in moments(torch.tensor([1.0, 2.0, -4.0]))] == [-1, 21, 3]


@given(lists)
def test_it_agrees_with_numpy(values):
    assume(np.std(values) > 1e-2)
    expected = (np.array(values) - np.mean(values)) / np.std(values)
    assert normalize(torch.tensor(values)).numpy() == pytest.approx(expected, rel=1e-4, abs=1e-4)


@given(lists, lists)
def test_two_ranks_that_add_their_sums_give_what_one_rank_with_all_gives(first, second):
    assume(np.std(first + second) > 1e-2)
    other = torch.stack(moments(torch.tensor(second)))
    by_reduction = normalize(torch.tensor(first), all_reduce=lambda sums: sums + other)
    added = Moments(*(torch.stack(moments(torch.tensor(first))) + other))
    by_statistics = normalize(torch.tensor(first), statistics=added)
    whole = normalize(torch.tensor(first + second))[: len(first)]
    assert by_reduction.tolist() == pytest.approx(whole.tolist(), rel=1e-5, abs=1e-5)
    assert by_statistics.tolist() == pytest.approx(whole.tolist(), rel=1e-5, abs=1e-5)


def test_given_statistics_are_used_as_they_are():
    # of [0, 2]: mean 1, deviation 1; the reduction would have doubled them
    statistics = moments(torch.tensor([0.0, 2.0]))
    scaled = normalize(torch.tensor([4.0]), all_reduce=lambda sums: 2 * sums, statistics=statistics)
    assert scaled.tolist() == pytest.approx([3.0])


@given(st.floats(-1000, 1000, width=32), st.integers(1, 50))
def test_equal_advantages_do_not_blow_up(value, count):
    assert normalize(torch.full((count,), value)).abs().max() < 1e-2
