"""Statistics against numbers worked out by hand, and scaling by them."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from accerl.statistics import scale, summarize, unscale

HUNDRED = np.stack([np.arange(101.0), np.arange(101.0)[::-1] / 100], axis=1)
"""From 0 to 100, and from 1 down to 0: the quantiles lie on values."""


def test_statistics_are_those_worked_out_by_hand():
    statistics = summarize(np.array([[0.0, 3.0], [1.0, 3.0], [2.0, 3.0], [5.0, 3.0]], np.float32))
    assert statistics["mean"] == [2.0, 3.0]
    assert statistics["std"] == [pytest.approx(3.5**0.5), 0.0]  # (4 + 1 + 0 + 9) / 4
    assert (statistics["min"], statistics["max"]) == ([0.0, 3.0], [5.0, 3.0])
    assert statistics["q01"] == pytest.approx([0.03, 3.0])  # 1 % of the way through three gaps, the first one of 1
    assert statistics["q99"] == pytest.approx([4.91, 3.0])  # 97 % of the last gap, from 2 to 5
    assert statistics["mask"] == [True, True]


def test_quantiles_leave_out_one_in_a_hundred_at_each_end():
    statistics = summarize(HUNDRED)
    assert statistics["q01"] == pytest.approx([1.0, 0.01])
    assert statistics["q99"] == pytest.approx([99.0, 0.99])


def test_statistics_can_be_written_as_json():
    statistics = summarize(HUNDRED, mask=[True, False])
    assert json.loads(json.dumps(statistics)) == statistics
    assert statistics["mask"] == [True, False]


def test_the_quantiles_become_minus_one_and_one_and_what_is_beyond_is_clipped():
    scaled = scale(
        np.array([[1.0, 0.01], [99.0, 0.99], [50.0, 0.5], [25.5, 0.5], [0.0, 0.0], [500.0, 2.0]]), summarize(HUNDRED)
    )
    assert scaled == pytest.approx(np.array([[-1, -1], [1, 1], [0, 0], [-0.5, 0], [-1, -1], [1, 1]]))


def test_what_the_mask_leaves_out_stays_as_it_is():
    statistics = summarize(HUNDRED, mask=[True, False])
    values = np.array([[1.0, -1.0], [99.0, 7.0]])
    assert scale(values, statistics) == pytest.approx(np.array([[-1, -1], [1, 7]]))
    assert unscale(scale(values, statistics), statistics) == pytest.approx(values)


def test_a_dimension_that_never_changes_becomes_zero_and_comes_back():
    statistics = summarize(np.full((5, 1), 0.25))
    assert scale(np.array([[0.25], [9.0]]), statistics).tolist() == [[0.0], [0.0]]
    assert unscale(np.array([[0.0]]), statistics).tolist() == [[0.25]]


@given(
    arrays(np.float64, (20, 3), elements=st.floats(-10, 10)),
    arrays(np.float64, (4, 2, 3), elements=st.floats(0, 1)),
)
def test_unscaling_is_the_inverse_of_scaling_between_the_quantiles(recorded, share):
    statistics = summarize(recorded, mask=[True, True, False])
    low, high = np.array(statistics["q01"]), np.array(statistics["q99"])
    values = low + share * (high - low)
    scaled = scale(values, statistics)
    assert (np.abs(scaled[..., :2]) <= 1).all()
    assert np.allclose(unscale(scaled, statistics), values, atol=1e-9)


@given(arrays(np.float64, (20, 2), elements=st.floats(-10, 10)), arrays(np.float64, (7, 2), elements=st.floats(-1, 1)))
def test_scaling_is_the_inverse_of_unscaling(recorded, scaled):
    statistics = summarize(recorded)
    span = np.array(statistics["q99"]) - np.array(statistics["q01"])
    expected = np.where(span > 0, scaled, 0.0)
    found = scale(unscale(scaled, statistics), statistics)
    assert np.allclose(found[:, span > 1e-6], expected[:, span > 1e-6], atol=1e-6)
    assert (np.abs(found) <= 1).all()
