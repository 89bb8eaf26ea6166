"""Rates of success and how sure they are."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

Z_95 = 1.959963984540054


@dataclass(frozen=True, slots=True)
class SuccessRate:
    """Successes among episodes, with Wilson's 95 % interval."""

    successes: int
    episodes: int

    @property
    def rate(self) -> float:
        """Successes over episodes; nan when nothing was counted."""
        return self.successes / self.episodes if self.episodes else float("nan")

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's; (0, 1) when nothing was counted."""
        return wilson(self.successes, self.episodes)

    def __str__(self) -> str:
        low, high = self.interval
        return f"{self.rate:.2f} [{low:.2f}, {high:.2f}]"

    def to_dict(self) -> dict[str, Any]:
        """JSON-compatible; the rate is None when nothing was counted."""
        return {
            "rate": self.rate if self.episodes else None,
            "interval": list(self.interval),
            "episodes": self.episodes,
        }


def wilson(successes: float, episodes: float) -> tuple[float, float]:
    """Wilson's 95 % score interval of a rate; (0, 1) when nothing was counted."""
    if not episodes:
        return 0.0, 1.0
    failures = max(0.0, episodes - successes)
    centre = (successes + Z_95**2 / 2) / (episodes + Z_95**2)
    half = Z_95 / (episodes + Z_95**2) * (successes * failures / episodes + Z_95**2 / 4) ** 0.5
    return max(0.0, centre - half), min(1.0, centre + half)


def mean_over_tasks(rates: Iterable[SuccessRate]) -> tuple[float | None, tuple[float, float]]:
    r"""Mean of the tasks' rates, each counting the same, and its interval.

    The interval is Wilson's for $K^2 / \sum_k 1/n_k$ episodes, which have the variance of that mean; tasks without
    episodes are left out.
    """
    counted = [rate for rate in rates if rate.episodes]
    if not counted:
        return None, wilson(0, 0)
    mean = sum(rate.rate for rate in counted) / len(counted)
    effective = len(counted) ** 2 / sum(1 / rate.episodes for rate in counted)
    return mean, wilson(mean * effective, effective)
