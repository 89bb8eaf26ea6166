"""Pictures of a run, drawn without a screen and without pyplot's global state."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, PercentFormatter

BLACK, ORANGE, SKY, GREEN, YELLOW, BLUE, RED, PURPLE = (
    "#000000",
    "#E69F00",
    "#56B4E9",
    "#009E73",
    "#F0E442",
    "#0072B2",
    "#D55E00",
    "#CC79A7",
)
"""Okabe and Ito's colours, which colour-blind readers can tell apart."""
TASK_COLOURS = (ORANGE, SKY, GREEN, PURPLE, RED, YELLOW)
SMOOTHED = 7
"""Lines of metrics over which what flickers is averaged."""
LEAST_POINTS = 40
"""That a smoothed curve is made of, however long the run: a slow one has updates in few of its lines."""
STYLE: Any = {
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 11,
    "axes.grid": True,
    "font.size": 9.5,
    "grid.alpha": 0.25,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
}

Metrics = Sequence[Mapping[str, Any]]
Rates = Mapping[str, Mapping[str, Any]]
"""Label to `rate` and `interval`, as `accerl eval` writes them."""


def curve(
    metrics: Metrics, path: Path, start: Rates | None = None, final: Rates | None = None, title: str = ""
) -> None:
    """Draw a run: success against decisions and against seconds, policy lag, throughput and what was busy.

    Args:
        metrics: lines of `metrics.jsonl`.
        start: evaluations of the policy before training, drawn where the curves begin.
        final: evaluations after it, drawn where they end.

    Raises:
        ValueError: there is no line.
    """
    if not metrics:
        raise ValueError("metrics: there is no line to draw")
    from matplotlib import rc_context

    with rc_context(STYLE):
        figure = Figure(figsize=(12, 7.4), layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.subplot_mosaic("AAABBB;AAABBB;AAABBB;CCDDEE;CCDDEE")
        _success(axes["A"], metrics, "decisions", start, final)
        _success(axes["B"], metrics, "wall_s", start, final)
        axes["A"].set(title="Success against decisions", xlabel="decisions collected", ylabel="success rate")
        axes["B"].set(title="Success against time", xlabel="seconds of training")
        axes["A"].xaxis.set_major_formatter(FuncFormatter(_thousands))
        axes["B"].sharey(axes["A"])
        axes["A"].legend(loc="best", ncols=2)
        _lag(axes["C"], metrics)
        _throughput(axes["D"], metrics)
        _busy(axes["E"], metrics)
        for name in "CDE":
            axes[name].set_xlabel("seconds of training")
            axes[name].set_xlim(left=0)
        if title:
            figure.suptitle(title, x=0.01, ha="left", fontsize=14, fontweight="bold")
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=130)


def _success(axes: Axes, metrics: Metrics, x_name: str, start: Rates | None, final: Rates | None) -> None:
    x = _column(metrics, x_name)
    tasks = sorted({task for line in metrics for task in line.get("success_by_task") or {}})
    for index, task in enumerate(tasks):
        rates = np.array([(line.get("success_by_task") or {}).get(task, np.nan) for line in metrics], float)
        axes.plot(x, rates, color=TASK_COLOURS[index % len(TASK_COLOURS)], linewidth=1, alpha=0.9, label=task)
    low, high = _column(metrics, "success_low"), _column(metrics, "success_high")
    axes.fill_between(x, low, high, color=BLUE, alpha=0.2, linewidth=0, label="95 % interval")
    axes.plot(x, _column(metrics, "success"), color=BLUE, linewidth=2.2, label="mean over tasks, rolling")
    _evaluations(axes, 0.0, start, -1)
    _evaluations(axes, float(x[-1]), final, 1)
    axes.set_ylim(0, 1.02)
    end = max(float(x[-1]), 1.0)
    axes.set_xlim(-0.07 * end, 1.07 * end)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))


def _evaluations(axes: Axes, x: float, rates: Rates | None, side: int) -> None:
    """Points with their intervals, beside one another at one end of the curve."""
    markers = {"sampled": ("o", BLACK), "greedy": ("D", RED)}
    known = axes.get_legend_handles_labels()[1]
    for index, (label, rate) in enumerate((rates or {}).items()):
        marker, colour = markers.get(label, ("s", PURPLE))
        low, high = rate["interval"]
        axes.errorbar(
            x,
            rate["rate"],
            yerr=[[max(0.0, rate["rate"] - low)], [max(0.0, high - rate["rate"])]],  # free of rounding
            fmt=marker,
            color=colour,
            capsize=3,
            markersize=6,
            transform=axes.transData + _shift(axes, side * (6 + 10 * index)),
            label=None if f"evaluation, {label}" in known else f"evaluation, {label}",
            zorder=5,
            clip_on=False,
        )


def _shift(axes: Axes, points: float) -> Any:
    from matplotlib.transforms import ScaledTranslation

    figure = axes.figure
    assert isinstance(figure, Figure)
    return ScaledTranslation(points / 72, 0, figure.dpi_scale_trans)


def _lag(axes: Axes, metrics: Metrics) -> None:
    x = _column(metrics, "wall_s")
    axes.plot(x, _smooth(_column(metrics, "policy_lag_mean")), color=BLUE, linewidth=2, label="mean")
    largest = _column(metrics, "policy_lag_max")
    known = ~np.isnan(largest)
    axes.plot(x[known], largest[known], color=ORANGE, linewidth=1, label="largest")
    axes.set(title="Age of the decisions trained on", ylabel="policy versions")
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_ylim(bottom=0)
    axes.legend(loc="lower right")


def _throughput(axes: Axes, metrics: Metrics) -> None:
    x = _column(metrics, "wall_s")
    for name, label, colour in (
        ("env_steps_per_s", "environment steps", GREEN),
        ("trained_decisions_per_s", "decisions trained on", ORANGE),
        ("decisions_per_s", "decisions", BLUE),
    ):
        axes.plot(x, _smooth(_column(metrics, name)), color=colour, linewidth=2, label=label)
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(FuncFormatter(_thousands))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.set(title="Throughput", ylabel="per second")
    axes.set_ylim(bottom=axes.get_ylim()[0] / 3)  # room for the legend
    axes.legend(loc="lower right", ncols=2)


def _busy(axes: Axes, metrics: Metrics) -> None:
    x = _column(metrics, "wall_s")
    for role, colour in (("learner", ORANGE), ("inference", SKY), ("rollout", GREEN)):
        axes.plot(x, _smooth(_column(metrics, f"{role}_busy")), color=colour, linewidth=2, label=role)
    cores = np.array([np.mean(line.get("cores_busy") or np.nan) for line in metrics], float)
    axes.plot(x, _smooth(cores), color=BLACK, linewidth=1.2, linestyle="--", label="all cores, mean")
    axes.set(title="Busy", ylabel="share of one core")
    axes.set_ylim(bottom=0)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.legend(loc="lower right", ncols=2)


def _column(metrics: Metrics, name: str) -> np.ndarray:
    """One number of each line, nan where it is missing."""
    return np.array([np.nan if line.get(name) is None else line[name] for line in metrics], float)


def _smooth(values: np.ndarray) -> np.ndarray:
    """Means over the lines around each one; nan where there are none."""
    half = max(SMOOTHED, len(values) // LEAST_POINTS) // 2
    around = [values[max(0, index - half) : index + half + 1] for index in range(len(values))]
    return np.array([part[~np.isnan(part)].mean() if (~np.isnan(part)).any() else np.nan for part in around])


def _thousands(value: float, _: Any) -> str:
    return f"{value / 1000:g} k" if value >= 1000 else f"{value:g}"
