r"""Statistics of a data set, and the scaling of actions by them.

BOUNDS_Q99, as OpenVLA scales: $a' = 2 (a - q_{01}) / (q_{99} - q_{01}) - 1$, clipped to $[-1, 1]$; dimensions that the
mask leaves out, such as a gripper that is open or closed, stay as they are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from accerl.types import Array


def summarize(values: Float[Array, "time dim"], mask: Sequence[bool] | None = None) -> dict[str, Any]:
    """Of each dimension; JSON-compatible, with the keys of OpenVLA's `dataset_statistics.json`.

    Args:
        mask: which dimensions are scaled; None: all.
    """
    values = np.asarray(values, np.float64)
    low, high = np.quantile(values, (0.01, 0.99), axis=0)
    return {
        "mean": values.mean(0).tolist(),
        "std": values.std(0).tolist(),
        "min": values.min(0).tolist(),
        "max": values.max(0).tolist(),
        "q01": low.tolist(),
        "q99": high.tolist(),
        "mask": list(mask) if mask is not None else [True] * values.shape[1],
    }


def scale(values: Float[Array, "*batch dim"], statistics: Mapping[str, Any]) -> Float[Array, "*batch dim"]:
    """Into [-1, 1]. A dimension that never changes becomes 0."""
    low, high, mask = (np.asarray(statistics[name]) for name in ("q01", "q99", "mask"))
    span = np.where(high > low, high - low, 1.0)
    scaled = np.where(high > low, np.clip(2.0 * (values - low) / span - 1.0, -1.0, 1.0), 0.0)
    return np.where(mask, scaled, values)


def unscale(values: Float[Array, "*batch dim"], statistics: Mapping[str, Any]) -> Float[Array, "*batch dim"]:
    """The inverse of `scale` for values within the quantiles."""
    low, high, mask = (np.asarray(statistics[name]) for name in ("q01", "q99", "mask"))
    return np.where(mask, (values + 1.0) / 2.0 * (high - low) + low, values)
