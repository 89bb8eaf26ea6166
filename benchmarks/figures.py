"""Pictures of the benchmarks, drawn without a screen."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, PercentFormatter

from accerl.plots import BLACK, BLUE, GREEN, ORANGE, PURPLE, RED, SKY, STYLE
from benchmarks.measurement import Measurement

ROLES = {"env": ("environments", GREEN), "inference": ("inference GPUs", SKY), "learner": ("training GPUs", ORANGE)}
NAMES = {"one_step_off": "one step off"}
MODE_COLOURS = {"async": BLUE, "barrier": GREEN, "one_step_off": ORANGE, "sync": RED}


def pipeline(measured: Sequence[Measurement], path: Path) -> None:
    """Decisions/s of each mode below the bound, and how much of the time each role works or is idle."""
    with rc_context(STYLE):
        figure = Figure(figsize=(10.5, 4.2), layout="constrained")
        FigureCanvasAgg(figure)
        left, right = figure.subplots(1, 2, width_ratios=(1, 1.35))
        _rates(left, measured)
        _shares(right, measured)
        experiment = measured[0].experiment
        work = f"{experiment.num_envs} emulated LIBERO environments"
        figure.suptitle(
            f"{work}, OpenVLA-OFT 7B on {experiment.num_gpus:g} emulated GPUs",
            x=0.01,
            ha="left",
            fontsize=13,
            fontweight="bold",
        )
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=130)


def _rates(axes: Axes, measured: Sequence[Measurement]) -> None:
    labels = [NAMES.get(each.experiment.mode, each.experiment.mode) for each in measured]
    bars = axes.bar(labels, [each.decisions_per_s for each in measured], color=BLUE, width=0.62)
    axes.bar_label(bars, [f"{each.decisions_per_s:.0f}" for each in measured], padding=2)
    bound = max(each.experiment.bound().total for each in measured if each.experiment.inference_gpus is not None)
    axes.axhline(bound, color=BLACK, linestyle="--", linewidth=1.2, label=f"min(X_env, X_inf, X_train) = {bound:.0f}")
    axes.set(title="Decisions trained on, a second", ylim=(0, 1.22 * bound))
    axes.grid(axis="x", visible=False)
    axes.legend(loc="upper right")


def _shares(axes: Axes, measured: Sequence[Measurement]) -> None:
    """Three bars a mode, each full height: busy below, idle above."""
    width = 0.26
    for index, (role, (label, colour)) in enumerate(ROLES.items()):
        positions = [mode + (index - 1) * width for mode in range(len(measured))]
        idle = [getattr(each, f"{role}_idle") for each in measured]
        busy = [1 - share for share in idle]
        axes.bar(positions, busy, width * 0.92, color=colour, label=f"{label} at work")
        above = axes.bar(positions, idle, width * 0.92, bottom=busy, color=colour, alpha=0.22)
        axes.bar_label(above, [f"{share:.0%}" for share in idle], label_type="center", fontsize=8)
    axes.set_xticks(range(len(measured)), [NAMES.get(each.experiment.mode, each.experiment.mode) for each in measured])
    axes.set(title="Share of the time at work, and idle (light, with its share)", ylim=(0, 1.17))
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.set_yticks([0, 0.25, 0.5, 0.75, 1.0])
    axes.grid(axis="x", visible=False)
    axes.legend(loc="upper center", ncols=3)


def scaling(measured: Sequence[Measurement], grown: Sequence[Measurement], shared: Sequence[str], path: Path) -> None:
    """Decisions/s over GPUs, simulated and measured; and how busy the parts are of which there is only one."""
    with rc_context(STYLE):
        figure = Figure(figsize=(10.5, 4.4), layout="constrained")
        FigureCanvasAgg(figure)
        left, right = figure.subplots(1, 2, width_ratios=(1.25, 1))
        _growth(left, measured, grown)
        _stations(right, [each for each in grown if each.experiment.mode == "async"], shared)
        for axes in (left, right):
            axes.set_xscale("log", base=2)
            axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            axes.set_xlabel("GPUs, with 6 environments each")
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=130)


def _growth(axes: Axes, measured: Sequence[Measurement], grown: Sequence[Measurement]) -> None:
    for mode, colour in MODE_COLOURS.items():
        line = sorted((e.experiment.num_gpus, e.decisions_per_s) for e in grown if e.experiment.mode == mode)
        points = [(e.experiment.num_gpus, _emulated_rate(e)) for e in measured if e.experiment.mode == mode]
        if line:
            axes.plot(*zip(*line, strict=True), color=colour, linewidth=2, label=NAMES.get(mode, mode))
        if points:
            axes.plot(*zip(*points, strict=True), "o", color=colour, markersize=6, markerfacecolor="white")
        if mode == "async" and line:
            gpus = [size for size, _ in line]
            ideal = [line[0][1] * size / line[0][0] for size in gpus]
            axes.plot(gpus, ideal, color=BLACK, linestyle="--", linewidth=1, label="linear")
    axes.plot([], [], "o", color=BLACK, markerfacecolor="white", label="measured")
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.set(title="Decisions trained on, a second (lines: simulated)")
    axes.legend(loc="upper left")


def _stations(axes: Axes, grown: Sequence[Measurement], shared: Sequence[str]) -> None:
    ordered = sorted(grown, key=lambda each: each.experiment.num_gpus)
    gpus = [each.experiment.num_gpus for each in ordered]
    learner = [1 - each.learner_idle for each in ordered]
    axes.plot(gpus, learner, color=BLACK, linewidth=1.2, linestyle="--", label="training GPUs")
    for station, colour in zip(shared, (ORANGE, SKY, GREEN, PURPLE), strict=True):
        axes.plot(gpus, [each.work_s[station] for each in ordered], color=colour, linewidth=2, label=station)
    axes.set(title="async: how busy the parts are that do not grow", ylim=(0, 1.05))
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.legend(loc="center left")


def _emulated_rate(each: Measurement) -> float:
    """Decisions a second of the emulated time."""
    return each.decisions_per_s * each.experiment.emulation.time_scale
