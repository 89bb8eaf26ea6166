"""`accerl trace`."""

from __future__ import annotations

from pathlib import Path

from accerl.cli.command import Command
from accerl.config import PositiveFloat, Section
from accerl.console import say

LINES = 10
"""Newest lines of metrics that the advice is about."""


class TraceOptions(Section):
    """Which run, and how much of it is drawn."""

    run: str
    """Its name below `root`, or its folder."""
    root: Path = Path("runs")
    """Folder that holds the runs."""
    seconds: PositiveFloat = 20.0
    """Length of the picture: the last seconds of the run."""


def trace(options: TraceOptions) -> int:
    from accerl.advisor import advise, readings_over
    from accerl.gantt import gantt
    from accerl.runtime.run import attach
    from accerl.timeline import FOLDER, read_spans, write_chrome_trace

    run = attach(options.run, options.root)
    spans = read_spans(run.folder / FOLDER)
    if not spans:
        raise RuntimeError(
            f"{run.folder / FOLDER} holds no entries; they come some seconds after the start unless trace.enabled=false"
        )
    picture = run.folder / "timeline.png"
    say(f"{write_chrome_trace(run.folder, spans)}: {len(spans)} entries; open it at https://ui.perfetto.dev")
    gantt(spans, picture, options.seconds, title=run.name)
    say(f"{picture}: the last {options.seconds:g} seconds, or all there are")
    lines = run.metrics()[-LINES:]
    say(advise(readings_over(lines)).sentence if lines else "no line of metrics yet, so no advice")
    return 0


COMMAND = Command(
    name="trace",
    summary="Merge what every process did into one trace and a picture, and say what limits the run.",
    options=TraceOptions,
    run=trace,
    positional="run",
    examples=(
        ("running or ended", "accerl trace quickstart"),
        ("a closer look", "accerl trace runs/quickstart --seconds 2"),
    ),
)
