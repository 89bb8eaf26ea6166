"""The last seconds of a run as a picture: a row a process, colours for what it did, blank where it waited."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from accerl.plots import BLACK, BLUE, GREEN, ORANGE, PURPLE, RED, SKY, STYLE, YELLOW
from accerl.timeline import Span, busy_share, flatten, order, tracks

COLOURS = {
    "env": GREEN,
    "forward": SKY,
    "swap": RED,
    "train": ORANGE,
    "recompute": YELLOW,
    "sample": PURPLE,
    "publish": BLUE,
}
OTHER_COLOURS = ("#7F7F7F", "#8C564B", "#17408B", "#B5BD4C", BLACK)
"""For names that the runtime does not use itself."""
IDLE = "#F1F1F1"
MAX_ROWS = 12
"""Processes of a role up to which each has its row; of more, `NUM_SAMPLED` are drawn below their sum."""
NUM_SAMPLED = 5
NUM_BINS = 300
"""Of a sum, over the width of the picture."""
INCHES = 0.21
"""Height of a lane that has its own label."""
SLOT, SLOTS, SUM, GAP = 0.42, 2.4, 3.0, 0.35
"""Heights of a slot, of all slots of a process at most, of a sum, and of the space between rows, in such lanes."""
REPORTED_WITHIN_S = 10.0
"""A process whose last span ended longer before the last of all is taken for dead; living ones report more often."""
WIDE = 1 / 150
"""Share of the width from which on a bar has an edge, which parts it from its neighbours."""

Lanes = dict[str, list[Span]]
"""Work of each lane of a process."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One or more lanes under one busy share."""

    label: str
    lanes: Lanes
    busy: float
    parts: tuple[Lanes, ...] = ()
    """Of a sum: the lanes of each of its processes."""

    @property
    def has_slots(self) -> bool:
        return "" not in self.lanes

    @property
    def lane_height(self) -> float:
        return self.height / max(1, len(self.lanes))

    @property
    def height(self) -> float:
        if self.parts:
            return SUM
        return min(max(1.0, SLOT * len(self.lanes)), SLOTS) if self.has_slots else float(len(self.lanes))


def gantt(spans: Sequence[Span], path: Path, seconds: float = 20.0, title: str = "") -> None:
    """Draw the last `seconds` that every process at work in them has reported.

    The figure at the right of a row is the share of the time for which it worked, see `accerl.timeline.busy_share`.

    Raises:
        ValueError: there is no span.
    """
    if not spans:
        raise ValueError("spans: there is none to draw")
    from matplotlib import rc_context

    begin, end = window(spans, seconds)
    rows = list(_rows(_lanes(spans, begin, end), end - begin))
    names = {span.name for row in rows for lanes in (row.lanes, *row.parts) for own in lanes.values() for span in own}
    colours = colours_of(names)
    height = sum(row.height + GAP for row in rows)
    with rc_context(STYLE):
        figure = Figure(figsize=(12, 1.5 + INCHES * height), layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.subplots()
        _draw(axes, rows, colours, end - begin)
        axes.set_xlabel("seconds")
        handles = [Patch(color=colour, label=name) for name, colour in colours.items()]
        handles.append(Patch(facecolor=IDLE, edgecolor="#CCCCCC", linewidth=0.5, label="idle"))
        figure.legend(handles=handles, loc="outside upper right", ncols=len(handles), handlelength=1.2)
        if title:
            axes.set_title(title, fontsize=12, fontweight="bold", pad=16)
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=130)


def window(spans: Sequence[Span], seconds: float) -> tuple[float, float]:
    """The last `seconds` up to which every process has reported, apart from those that had ended before."""
    last: dict[str, float] = {}
    for span in spans:
        last[span.process] = max(last.get(span.process, span.end_s), span.end_s)
    newest = max(last.values())
    end = min(time_s for time_s in last.values() if time_s > newest - REPORTED_WITHIN_S)
    first = min(span.start_s for span in spans)
    return max(first, end - seconds), end


def colours_of(names: set[str]) -> dict[str, str]:
    """A colour for each name, the runtime's own ones first."""
    known = {name: colour for name, colour in COLOURS.items() if name in names}
    others = sorted(names - set(known))
    return known | {name: OTHER_COLOURS[index % len(OTHER_COLOURS)] for index, name in enumerate(others)}


def _lanes(spans: Sequence[Span], begin: float, end: float) -> dict[str, Lanes]:
    """What each process worked within the window, by lane; seconds from its begin."""
    found: dict[tuple[str, str], list[Span]] = defaultdict(list)
    processes: dict[str, Lanes] = {process: {} for process in sorted({span.process for span in spans}, key=order)}
    for span in spans:
        found[span.process, span.lane].append(span)
    for (process, lane), own in sorted(found.items(), key=lambda item: order(item[0][1])):
        inside = [
            replace(span, start_s=max(begin, span.start_s) - begin, end_s=min(end, span.end_s) - begin)
            for span in own
            if span.end_s > begin and span.start_s < end
        ]
        for index, track in enumerate(tracks(inside) or [[]]):
            processes[process][lane if index == 0 else f"{lane} ({index + 1})"] = flatten(track)
    return processes


def _rows(processes: Mapping[str, Lanes], seconds: float) -> Iterator[Row]:
    """A row a process, or of many processes of a role their sum and a sample."""
    roles: dict[str, list[str]] = defaultdict(list)
    for process in processes:
        roles[process.split("-")[0]].append(process)
    for role, members in roles.items():
        rows = [Row(label=name, lanes=processes[name], busy=busy_share(processes[name], seconds)) for name in members]
        if len(rows) <= MAX_ROWS:
            yield from rows
            continue
        busy = sum(row.busy for row in rows) / len(rows)
        label = f"{role}: all {len(rows)}\n{NUM_SAMPLED} of them below"
        yield Row(label=label, lanes={}, busy=busy, parts=tuple(row.lanes for row in rows))
        yield from (rows[index] for index in np.linspace(0, len(rows) - 1, NUM_SAMPLED).astype(int))


def _draw(axes: Axes, rows: Sequence[Row], colours: Mapping[str, str], seconds: float) -> None:
    right = axes.get_yaxis_transform()
    top = 0.0
    for row in rows:
        if row.parts:
            _sum(axes, row, colours, seconds, top)
        for index, pieces in enumerate(row.lanes.values()):
            place = (top + index * row.lane_height, 0.86 * row.lane_height)
            _lane(axes, pieces, colours, place, seconds)
        labels = [row.label] if row.has_slots else [row.label, *list(row.lanes)[1:]]
        for index, label in enumerate(labels):
            height = row.height / len(labels)
            y = top + (index + 0.46) * height
            colour, size = (BLACK, 9.5) if index == 0 else ("#666666", 8)
            axes.text(-0.006, y, label, transform=right, ha="right", va="center", color=colour, fontsize=size)
            if index == 0:
                axes.text(1.006, y, f"{row.busy:.0%}", transform=right, va="center", fontsize=9)
        top += row.height + GAP
    axes.text(1.006, -0.6, "busy", transform=right, va="center", fontsize=8.5, color="#666666")
    axes.set(xlim=(0, seconds), ylim=(top, -0.15), yticks=[])
    axes.spines["left"].set_visible(False)
    axes.set_axisbelow(True)


def _lane(
    axes: Axes,
    pieces: Sequence[Span],
    colours: Mapping[str, str],
    place: tuple[float, float],
    seconds: float,
) -> None:
    axes.broken_barh([(0, seconds)], place, facecolor=IDLE, linewidth=0)
    for name, colour in colours.items():
        bars = [(span.start_s, span.end_s - span.start_s) for span in pieces if span.name == name]
        edges = [0.4 if duration_s > WIDE * seconds else 0.0 for _, duration_s in bars]
        axes.broken_barh(bars, place, facecolor=colour, edgecolor="white", linewidth=edges)


def _sum(axes: Axes, row: Row, colours: Mapping[str, str], seconds: float, top: float) -> None:
    """Which share of all processes did what, stacked from the bottom."""
    edges = np.linspace(0, seconds, NUM_BINS + 1)
    work = [span for lanes in row.parts for span in main(lanes)]
    total = sum(span.end_s - span.start_s for span in work)
    scale = SUM * row.busy * seconds / max(total, 1e-9)
    axes.broken_barh([(0, seconds)], (top, SUM), facecolor=IDLE, linewidth=0)
    bottom = np.full(NUM_BINS, top + SUM)
    for name, colour in colours.items():
        shares = np.diff(_work_until(edges, [span for span in work if span.name == name])) / np.diff(edges)
        upper = np.maximum(bottom - scale * shares, top)
        axes.stairs(upper, edges, baseline=bottom, fill=True, color=colour, linewidth=0)
        bottom = upper


def main(lanes: Lanes) -> list[Span]:
    """The work that the busy share of a process is about."""
    return lanes[""] if "" in lanes else [span for pieces in lanes.values() for span in pieces]


def _work_until(times: np.ndarray, work: Sequence[Span]) -> np.ndarray:
    """Seconds that were worked before each of the times."""
    starts, ends = np.sort([span.start_s for span in work]), np.sort([span.end_s for span in work])
    return _passed(times, starts) - _passed(times, ends)


def _passed(times: np.ndarray, marks: np.ndarray) -> np.ndarray:
    """Sum over the marks before each time of what has passed since."""
    before = np.searchsorted(marks, times)
    sums = np.concatenate([[0.0], np.cumsum(marks)])
    return before * times - sums[before]
