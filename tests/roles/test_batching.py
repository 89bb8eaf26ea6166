"""The price of waiting, by hand; the estimates it is made of; buckets."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from accerl.batching import Arrivals, ForwardTime, answer_padded, padded_size, worthwhile_wait_s

seconds = st.floats(0.001, 10)


def wait(num_waiting: int, gaps: list[float], fixed_s: float, each_s: float = 0.0, per_arrival: float = 1.0) -> float:
    return worthwhile_wait_s(num_waiting, np.array(gaps), per_arrival, fixed_s, each_s)


# --- the wait ---------------------------------------------------------------------------------------------------------


def test_without_any_gap_there_is_no_telling():
    assert wait(1, [], 100.0) == math.inf


@pytest.mark.parametrize(
    ("num_waiting", "fixed_s", "each_s", "expected"),
    [
        (1, 2.1, 0.0, 1.0),  # a > (n + 1) G = 2
        (1, 1.9, 0.0, 0.0),
        (4, 5.1, 0.0, 1.0),
        (4, 4.9, 0.0, 0.0),
        (4, 6.9, 0.5, 0.0),  # a > (n + 1) G + b n = 7
        (4, 7.1, 0.5, 1.0),
    ],
)
def test_at_a_steady_rate_the_fixed_time_must_be_above_the_delay_of_all(num_waiting, fixed_s, each_s, expected):
    assert wait(num_waiting, [1.0, 1.0], fixed_s, each_s) == expected


def test_a_free_forward_is_not_waited_for():
    assert wait(1, [0.001] * 8, 0.0) == 0


def test_more_requests_an_arrival_are_worth_a_longer_wait():
    # 1 waits, 3 come after 2 s; a = 3: at once 3 + 3 (3 + 3) = 21, together 4 (2 + 3) = 20
    assert wait(1, [2.0], 3.0, per_arrival=3) == 2.0
    assert wait(1, [2.0], 3.0, per_arrival=1) == 0.0  # 3 + 6 against 10


def test_in_bursts_the_wait_ends_when_the_burst_has_ended():
    # n = 2, a = 1: without waiting 5.125 request-seconds, with 0.1 s of it 4.5375, with 10 s 7.0125
    assert wait(2, [0.1] * 7 + [10.0], 1.0) == 0.1


def test_where_bursts_are_rare_nothing_is_waited_for():
    # n = 2, a = 1: 0.1 s costs 0.2 in 7 of 8 cases and gains 0.7 in one
    assert wait(2, [0.1] + [10.0] * 7, 1.0) == 0


@given(st.integers(1, 16), st.lists(seconds, min_size=1, max_size=8), seconds, seconds, st.integers(1, 8))
def test_no_other_wait_is_better(num_waiting, gaps, fixed_s, each_s, per_arrival):
    def forward(size: int) -> float:
        return fixed_s + each_s * size

    def spent(limit: float) -> float:
        total = 0.0
        for gap in gaps:
            if gap <= limit:
                total += (num_waiting + per_arrival) * (gap + forward(num_waiting + per_arrival))
            else:
                free = limit + forward(num_waiting)
                total += num_waiting * free + per_arrival * (max(gap, free) + forward(per_arrival))
        return total / len(gaps)

    chosen = wait(num_waiting, gaps, fixed_s, each_s, per_arrival)
    others = [0.0, *gaps, *(gap + 0.5 for gap in gaps), *(gap / 2 for gap in gaps)]
    assert spent(chosen) <= min(map(spent, others)) + 1e-6


# --- estimates --------------------------------------------------------------------------------------------------------


def test_a_line_is_found_in_the_times_of_forwards():
    times = ForwardTime()
    for size in (1, 8, 3, 5):
        times.add(size, 0.1 + 0.02 * size)
    assert times.line() == pytest.approx((0.1, 0.02))


def test_without_different_sizes_all_time_is_fixed():
    times = ForwardTime()
    assert times.line() == (math.inf, 0)
    for _ in range(3):
        times.add(4, 0.5)
    assert times.line() == pytest.approx((0.5, 0))


def test_no_part_of_a_forward_takes_less_than_no_time():
    falling, steep = ForwardTime(), ForwardTime()
    for size in (1, 2, 4):
        falling.add(size, 1.0 / size)
        steep.add(size, 0.1 * size**2)
    fixed_s, each_s = falling.line()
    assert (fixed_s > 0, each_s) == (True, 0)
    fixed_s, each_s = steep.line()
    assert fixed_s == pytest.approx(0)
    assert each_s > 0


def test_old_forwards_are_forgotten():
    times = ForwardTime(decay=0.5)
    for size in (1, 8):
        times.add(size, 100.0)
    for size in itertools.islice(itertools.cycle((1, 2, 3)), 60):
        times.add(size, 1.0 + size)
    assert times.line() == pytest.approx((1, 1), rel=1e-6)


def test_gaps_are_those_between_the_newest_arrivals():
    arrivals = Arrivals(num=3)
    assert (arrivals.gaps.tolist(), arrivals.mean_size) == ([], 1)
    for now, size in ((0, 9), (5, 1), (6, 2), (8, 4), (12, 6)):
        arrivals.add(now, size)
    assert arrivals.gaps.tolist() == [1, 2, 4]
    assert arrivals.mean_size == 4


# --- buckets ----------------------------------------------------------------------------------------------------------


def test_a_batch_is_filled_up_to_the_next_bucket():
    assert [padded_size(size, (8, 2, 4)) for size in (1, 2, 3, 5, 8, 9)] == [2, 2, 4, 8, 8, 9]
    assert padded_size(3, ()) == 3


def test_answers_are_the_same_with_and_without_filling():
    sizes: list[int] = []

    def answer(requests):
        sizes.append(len(requests))
        return [10 * request for request in requests]

    assert answer_padded(answer, [1, 2, 3], (4, 8)) == [10, 20, 30]
    assert answer_padded(answer, [1, 2, 3], ()) == [10, 20, 30]
    assert answer_padded(answer, [5] * 4, (4, 8)) == [50] * 4
    assert sizes == [4, 3, 4]
