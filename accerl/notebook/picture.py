"""The viewer without a browser: film strips and curves of a few episodes, drawn by matplotlib without a screen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from accerl.notebook.png import small_png
from accerl.plots import BLACK, BLUE, GREEN, ORANGE, SKY, STYLE

FRAMES = 10
"""Of a film strip, spread over the episode."""
COLOURS = {
    "reward": GREEN,
    "value": BLUE,
    "success probability": ORANGE,
    "success": BLACK,
    "judged real": SKY,
}
"""Of the curves that are drawn, which share an axis."""


Curves = Mapping[str, list[float | None]]


def episodes_picture(episodes: Sequence[tuple[Mapping[str, Any], np.ndarray, Curves]]) -> bytes:
    """PNG: for each episode a strip of its frames, and its curves below.

    Args:
        episodes: facts and curves, as `accerl.notebook.strip` gives them, and images between them.
    """
    with rc_context(STYLE):
        figure = Figure(figsize=(9, 3.1 * max(1, len(episodes))), layout="constrained")
        FigureCanvasAgg(figure)
        if not episodes:
            figure.text(0.5, 0.5, "no trajectory yet", ha="center", va="center")
        places = iter(figure.subplots(2 * len(episodes), 1).flat if episodes else ())
        for facts, images, curves in episodes:
            _strip(next(places), facts, images)
            _draw(next(places), curves)
        return small_png(figure, dpi=84)


def _strip(axes: Axes, facts: Mapping[str, Any], images: np.ndarray) -> None:
    chosen = np.unique(np.linspace(0, len(images) - 1, FRAMES).round().astype(int))
    frames = [np.concatenate(list(images[index]), axis=1) for index in chosen]
    gap = np.full((frames[0].shape[0], max(1, frames[0].shape[1] // 32), 3), 255, np.uint8)
    axes.imshow(np.concatenate([part for frame in frames for part in (frame, gap)][:-1], axis=1))
    low, high = facts["versions"]
    version = f"version {low}" if low == high else f"versions {low} to {high}"
    axes.set_title(f"{facts['task']} · {facts['source']} · {facts['outcome']} · {version}", fontsize=9.5)
    axes.axis("off")


def _draw(axes: Axes, curves: Curves) -> None:
    for label, colour in COLOURS.items():
        if label in curves:
            series = np.array([np.nan if value is None else value for value in curves[label]], float)
            axes.plot(series, color=colour, label=label, linewidth=1.6)
            axes.set_xlim(0, max(1, len(series) - 1))
    axes.set_xlabel("frame")
    axes.legend(loc="upper left", ncols=4, fontsize=8)
