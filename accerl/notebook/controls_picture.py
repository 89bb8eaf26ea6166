"""The controls without a browser: what is set, as a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from accerl.notebook.png import small_png

ROW = 0.24
"""Inches."""


def controls_picture(title: str, state: str, knobs: Sequence[Mapping[str, Any]]) -> bytes:
    """PNG of the knobs' values."""
    figure = Figure(figsize=(6, ROW * (len(knobs) + 2)))
    FigureCanvasAgg(figure)
    height = len(knobs) + 2
    figure.text(0.02, 1 - 0.8 / height, f"{title} · {state}", fontweight="bold", va="center")
    for row, knob in enumerate(knobs):
        y = 1 - (row + 1.8) / height
        figure.text(0.04, y, f"{knob['section']}.{knob['name']}", va="center", fontsize=9)
        figure.text(0.6, y, str(knob["value"]), va="center", fontsize=9)
    return small_png(figure, dpi=84)
