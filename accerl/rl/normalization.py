"""Global advantage normalisation (paper eq. 5-7)."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor


class Moments(NamedTuple):
    """Sums from which a mean and a deviation follow; sums of several ranks add up."""

    total: Tensor
    total_squares: Tensor
    count: Tensor


def moments(advantage: Float[Tensor, " decision"]) -> Moments:
    """Sum, sum of squares and count, in float64."""
    values = advantage.double()
    return Moments(values.sum(), values.square().sum(), values.new_tensor(float(len(values))))


def normalize(
    advantage: Float[Tensor, " decision"],
    all_reduce: Callable[[Tensor], Tensor] | None = None,
    statistics: Moments | None = None,
) -> Float[Tensor, " decision"]:
    r"""$(A - \mu) / (s + 10^{-8})$ with $\mu = S/N$ and $s^2 = \max(Q/N - \mu^2, 10^{-12})$ over all ranks.

    Args:
        all_reduce: sums a tensor over the ranks; none: there is one rank.
        statistics: use these instead of those of `advantage` (v2 of the paper lags them by one update).
    """
    sums = torch.stack(statistics or moments(advantage))
    if all_reduce is not None and statistics is None:
        sums = all_reduce(sums)
    total, total_squares, count = sums
    mean = total / count
    deviation = (total_squares / count - mean.square()).clamp(min=1e-12).sqrt()
    return ((advantage.double() - mean) / (deviation + 1e-8)).float()
