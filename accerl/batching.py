"""When a batch should leave: what waiting for more requests gains and costs, and the estimates this needs."""

from __future__ import annotations

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

    A forward over B requests takes a + b B. Let n requests wait, and let the next m arrive after a time G. If the
    batch leaves at once, they wait for the device and pay for a forward of their own; if it waits for them, they share
    this one, while the n are delayed. In seconds summed over requests, against leaving at once:

        gain(G) = m max(a + b n - G, 0) - m b n       the m start without waiting for the n, and end with them
        cost(G) = n (G + b m)                         the n start later, in a longer forward
        V(t)    = E[(gain(G) - cost(G)) 1{G <= t}] - n t P(G > t)

    The answer is the t that maximises V, or 0 where no t gains anything. With a steady rate 1 / G of single requests
    this says: wait as long as a > (n + 1) G + n b.

    Args:
        num_waiting: n.
        gaps: recent times between arrivals, the distribution of G, seconds.
        per_arrival: m, requests that arrive at once.
        fixed_s: a.
        each_s: b.
    """
    if not len(gaps):
        return 0.0
    n, m, a, b = num_waiting, per_arrival, fixed_s, each_s
    gaps = np.sort(gaps)
    gain = m * np.maximum(a + b * n - gaps, 0.0) - m * b * n
    cost = n * (gaps + b * m)
    come = np.arange(1, len(gaps) + 1) / len(gaps)  # P(G <= t) at each t that is a gap
    value = np.cumsum(gain - cost) / len(gaps) - n * gaps * (1 - come)
    best = int(np.argmax(value))
    return float(gaps[best]) if value[best] > 0 else 0.0


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
        self._sums = np.zeros(5)  # of 1, B, B^2, t, B t

    def add(self, size: int, seconds: float) -> None:
        self._sums *= self._decay
        self._sums += (1, size, size * size, seconds, size * seconds)

    def line(self) -> tuple[float, float]:
        """The pair (a, b), neither below 0; (0, 0) before the first forward."""
        weight, sizes, squares, seconds, products = self._sums.tolist()
        if not weight:
            return 0.0, 0.0
        variance = squares / weight - (sizes / weight) ** 2
        if variance < 1e-6:
            return seconds / weight, 0.0
        slope = (products / weight - sizes * seconds / weight**2) / variance
        slope = min(max(slope, 0.0), products / squares)  # a line through the origin is the steepest
        return max((seconds - slope * sizes) / weight, 0.0), slope


class Arrivals:
    """Times between the most recent arrivals, and how many requests came with each."""

    def __init__(self, num: int = 64):
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
