"""Interquartile means with bootstrap intervals, as rliable defines them (Agarwal et al. 2021, arXiv 2108.13264)."""

from __future__ import annotations

import numpy as np


def interquartile_mean(scores: np.ndarray) -> float:
    """Mean of the middle half of all scores [run, task]; those at a quartile count for their part inside."""
    ordered = np.sort(np.asarray(scores, float).ravel())
    edges = np.arange(len(ordered) + 1) / len(ordered)
    inside = np.clip(np.minimum(edges[1:], 0.75) - np.maximum(edges[:-1], 0.25), 0.0, None)
    return float(inside @ ordered / 0.5)


def bootstrap_interval(
    scores: np.ndarray, num_resamples: int = 2000, level: float = 0.95, seed: int = 0
) -> tuple[float, float]:
    """Percentile interval of the interquartile mean: runs are drawn again, for each task on its own."""
    scores = np.asarray(scores, float)
    num_runs, num_tasks = scores.shape
    random = np.random.default_rng(seed)
    means = []
    for _ in range(num_resamples):
        drawn = random.integers(num_runs, size=(num_runs, num_tasks))
        means.append(interquartile_mean(np.take_along_axis(scores, drawn, axis=0)))
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
