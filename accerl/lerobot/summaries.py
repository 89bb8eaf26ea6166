"""Statistics as LeRobot keeps them: of each column, of an episode or of all, JSON-compatible.

LeRobot estimates quantiles from histograms of an episode and averages those of episodes; here they are exact.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Int64, Shaped, UInt8

from accerl.types import Array

QUANTILES = {"q01": 0.01, "q10": 0.10, "q50": 0.50, "q90": 0.90, "q99": 0.99}


class Summary:
    """Statistics of the episodes that were added, of each and of all."""

    def __init__(self) -> None:
        self.episodes: list[dict[str, Any]] = []
        """By column."""
        self._vectors: dict[str, list[Array]] = {}
        self._pixels: dict[str, Array] = {}
        self._num_frames = 0

    def add(self, vectors: Mapping[str, Array], images: Mapping[str, Array]) -> None:
        """An episode by columns: vectors [time, dim], images [time, height, width, 3]."""
        found = {}
        self._num_frames += len(next(iter(vectors.values())))
        for name, pictures in images.items():
            pixels = histogram(pictures)
            found[name] = of_images(pixels, len(pictures))
            self._pixels[name] = self._pixels.get(name, 0) + pixels
        for name, values in vectors.items():
            found[name] = of_numbers(values)
            self._vectors.setdefault(name, []).append(values)
        self.episodes.append(found)

    def overall(self) -> dict[str, Any]:
        """By column."""
        return {
            **{name: of_images(pixels, self._num_frames) for name, pixels in self._pixels.items()},
            **{name: of_numbers(np.concatenate(parts)) for name, parts in self._vectors.items()},
        }


def of_numbers(values: Shaped[Array, "time dim"]) -> dict[str, list[Any]]:
    """Of each dimension; `count` is the number of frames."""
    quantiles = np.quantile(values.astype(np.float64), list(QUANTILES.values()), axis=0)
    return {
        "min": values.min(0).tolist(),
        "max": values.max(0).tolist(),
        "mean": values.mean(0, dtype=np.float64).tolist(),
        "std": values.std(0, dtype=np.float64).tolist(),
        "count": [len(values)],
        **{name: row.tolist() for name, row in zip(QUANTILES, quantiles, strict=True)},
    }


def histogram(images: UInt8[Array, "time height width 3"]) -> Int64[Array, "3 256"]:
    """Pixels of each colour and value: enough for exact statistics, and those of episodes can be added."""
    return np.stack([np.bincount(images[..., colour].ravel(), minlength=256) for colour in range(3)])


def of_images(pixels: Int64[Array, "3 256"], num_frames: int) -> dict[str, list[Any]]:
    """Of each colour, [3, 1, 1], where 1 is the brightest."""
    values = np.arange(256) / 255
    num_pixels = pixels.sum(1)
    mean = (pixels @ values) / num_pixels
    variance = (pixels @ values**2) / num_pixels - mean**2
    found = {
        "min": values[np.argmax(pixels > 0, axis=1)],
        "max": values[255 - np.argmax(pixels[:, ::-1] > 0, axis=1)],
        "mean": mean,
        "std": np.sqrt(np.maximum(variance, 0.0)),
        **{name: _quantile(pixels, fraction) / 255 for name, fraction in QUANTILES.items()},
    }
    return {**{name: row.reshape(3, 1, 1).tolist() for name, row in found.items()}, "count": [num_frames]}


def _quantile(pixels: Int64[Array, "3 256"], fraction: float) -> Array:
    """Between the two values on either side of it, as `numpy.quantile` has it."""
    below = np.cumsum(pixels, axis=1)
    place = fraction * (below[:, -1] - 1)
    first = np.floor(place)
    lower = np.array([np.searchsorted(row, at, side="right") for row, at in zip(below, first, strict=True)])
    upper = np.array([np.searchsorted(row, at, side="right") for row, at in zip(below, np.ceil(place), strict=True)])
    return lower + (place - first) * (upper - lower)
