"""The dashboard without a browser: the same panels, drawn by matplotlib without a screen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from accerl.notebook.panels import PANELS, Panel
from accerl.notebook.png import small_png
from accerl.plots import BLUE, GREEN, ORANGE, PURPLE, RED, SKY, STYLE, TASK_COLOURS

COLOURS = {"blue": BLUE, "orange": ORANGE, "green": GREEN, "purple": PURPLE, "red": RED, "sky": SKY}
COLUMNS = 3
ROW, MARGIN = 2.2, 0.8
"""Inches: of a row of panels, and above all of them."""


def dashboard_picture(title: str, state: str, lines: Sequence[Mapping[str, Any]]) -> bytes:
    """PNG of compact lines of metrics."""
    present = {key for line in lines for key in line}
    panels = [panel for panel in PANELS if any(curve.key in present for curve in panel.curves)]
    rows = -(-(len(panels) + 1) // COLUMNS)
    with rc_context(STYLE):
        height = ROW * rows + MARGIN
        figure = Figure(figsize=(12, height))
        FigureCanvasAgg(figure)
        figure.text(0.01, 1 - 0.25 / height, f"{title} · {state}", va="center", fontsize=12, fontweight="bold")
        if lines:
            frame = {"left": 0.04, "right": 0.99, "top": 1 - MARGIN / height, "bottom": 0.6 / height}
            places = list(figure.subplots(rows, COLUMNS, gridspec_kw={**frame, "hspace": 0.4, "wspace": 0.15}).flat)
            _success(places[0], lines)
            for axes, panel in zip(places[1:], panels, strict=False):
                _panel(axes, panel, lines)
            for axes in places[1 + len(panels) :]:
                axes.axis("off")
            if advice := lines[-1].get("advice"):
                figure.text(0.01, 0.15 / height, advice, fontsize=9)
        return small_png(figure, dpi=72)


def _success(axes: Axes, lines: Sequence[Mapping[str, Any]]) -> None:
    x = _column(lines, "wall_s")
    tasks = sorted({task for line in lines for task in line.get("success_by_task", {})})
    for index, task in enumerate(tasks):
        rates = [line.get("success_by_task", {}).get(task, np.nan) for line in lines]
        axes.plot(x, rates, color=TASK_COLOURS[index % len(TASK_COLOURS)], linewidth=1, label=task)
    axes.fill_between(x, _column(lines, "success_low"), _column(lines, "success_high"), color=BLUE, alpha=0.2)
    axes.plot(x, _column(lines, "success"), color=BLUE, linewidth=2, label="mean over tasks")
    axes.set(title="success", ylim=(0, 1.02))
    axes.legend(fontsize=7, loc="upper left", frameon=True, framealpha=0.7, edgecolor="none")


def _panel(axes: Axes, panel: Panel, lines: Sequence[Mapping[str, Any]]) -> None:
    x = _column(lines, "wall_s")
    for curve in panel.curves:
        y = _column(lines, curve.key)
        known = np.isfinite(y)
        if known.any():
            axes.plot(
                x[known],
                _smoothed(y[known], panel.smooth),
                color=COLOURS[curve.colour],
                linewidth=1.4,
                label=curve.label,
            )
    axes.set_title(panel.title)
    if panel.low is not None:
        axes.set_ylim(bottom=panel.low)
    if panel.high is not None:
        axes.set_ylim(top=panel.high * 1.02)
    axes.legend(fontsize=7, loc="upper left", frameon=True, framealpha=0.7, edgecolor="none")


def _column(lines: Sequence[Mapping[str, Any]], key: str) -> np.ndarray:
    return np.array([line.get(key, np.nan) for line in lines], float)


def _smoothed(values: np.ndarray, width: int) -> np.ndarray:
    """Each value with its neighbours, `width` of them."""
    reach = width // 2
    return np.array([values[max(0, index - reach) : index + reach + 1].mean() for index in range(len(values))])
