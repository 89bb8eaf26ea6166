"""When a batch should leave: what waiting for more requests gains and costs, and the estimates this needs."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np
from jaxtyping import Float

Request = TypeVar("Request")
Response = TypeVar("Response")


def worthwhile_wait_s(
    num_waiting: int, gaps: Float[np.ndarray, " gap"], per_arrival: float, fixed_s: float, each_s: float
) -> float:
    """For how long an idle device should wait for the next arrival before it starts with what it has.

    A forward over B requests takes a + b B. Let n requests wait, and let the next m arrive after a time G. If they
    come within the wait t, all share a forward; if not, the n leave without them, and they have one of their own when
    the device is free. The wait that is returned minimises the expected sum of the times until the answers,

        D(t) = E[n F + m S]
        F = S = G + a + b (n + m)                                  if G <= t
        F = t + a + b n    and    S = max(G, F) + a + b m          otherwise

    over t = 0 and the gaps. A steady rate of single requests makes it wait as long as a > (n + 1) G + b n: as long as
    the fixed part of a forward, which one request less has to wait for, is above the delay of those that wait. Without
    any gap there is no telling: it is infinite.

    Args:
        num_waiting: n.
        gaps: recent times between arrivals, the distribution of G, seconds.
        per_arrival: m, requests that arrive at once.
        fixed_s: a.
        each_s: b.
    """
    if not len(gaps):
        return math.inf
    n, m, a, b = num_waiting, per_arrival, fixed_s, each_s
    waits = np.concatenate(([0.0], gaps))
    gap, limit = gaps[None, :], waits[:, None]
    in_time = gap <= limit
    first = np.where(in_time, gap + a + b * (n + m), limit + a + b * n)
    second = np.where(in_time, first, np.maximum(gap, first) + a + b * m)
    return float(waits[np.argmin((n * first + m * second).mean(axis=1))])


def padded_size(size: int, buckets: Sequence[int]) -> int:
    """The smallest bucket that holds `size` requests; `size` itself where none does."""
    return min((bucket for bucket in buckets if bucket >= size), default=size)


def answer_padded(
    answer: Callable[[Sequence[Request]], Sequence[Response]], requests: Sequence[Request], buckets: Sequence[int]
) -> Sequence[Response]:
    """The answers to `requests` from a batch that is filled up to its bucket with copies of the last one."""
    missing = padded_size(len(requests), buckets) - len(requests)
    return answer([*requests, *[requests[-1]] * missing])[: len(requests)] if missing else answer(requests)


class ForwardTime:
    """The line a + b B through the durations of recent forwards: least squares, the past forgotten exponentially.

    Where the sizes do not differ, the whole time counts as fixed.
    """

    def __init__(self, decay: float = 0.95):
        self._decay = decay
        self._sums = (0.0,) * 5  # of 1, B, B^2, t, B t

    def add(self, size: int, seconds: float) -> None:
        new = (1, size, size * size, seconds, size * seconds)
        self._sums = tuple(self._decay * old + term for old, term in zip(self._sums, new, strict=True))

    def line(self) -> tuple[float, float]:
        """The pair (a, b), neither below 0; infinite a before the first forward."""
        weight, sizes, squares, seconds, products = self._sums
        if not weight:
            return math.inf, 0.0
        variance = squares / weight - (sizes / weight) ** 2
        if variance < 1e-6:
            return seconds / weight, 0.0
        slope = (products / weight - sizes * seconds / weight**2) / variance
        slope = min(max(slope, 0.0), products / squares)  # a line through the origin is the steepest
        return max((seconds - slope * sizes) / weight, 0.0), slope


class Arrivals:
    """Times between the most recent arrivals, and how many requests came with each."""

    def __init__(self, num: int = 32):
        self._gaps: deque[float] = deque(maxlen=num)
        self._sizes: deque[int] = deque(maxlen=num)
        self._last_s: float | None = None

    def add(self, now_s: float, size: int) -> None:
        if self._last_s is not None:
            self._gaps.append(now_s - self._last_s)
            self._sizes.append(size)
        self._last_s = now_s

    @property
    def gaps(self) -> Float[np.ndarray, " gap"]:
        return np.array(self._gaps)

    @property
    def mean_size(self) -> float:
        return sum(self._sizes) / len(self._sizes) if self._sizes else 1.0
