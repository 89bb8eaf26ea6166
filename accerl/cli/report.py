"""`accerl report`."""

from __future__ import annotations

from pathlib import Path

from accerl.cli.command import Command
from accerl.config import Section
from accerl.console import say


class ReportOptions(Section):
    """Which run, and where the page goes."""

    run: str
    """Its name below `root`, or its folder."""
    root: Path = Path("runs")
    """Folder that holds the runs."""
    out: Path | None = None
    """HTML file; none: `report.html` in the run's folder."""


def report(options: ReportOptions) -> int:
    from accerl.runtime.run import attach

    say(str(attach(options.run, options.root).report(options.out)))
    return 0


COMMAND = Command(
    name="report",
    summary="A run as one page: curves, episodes, evaluations, what happened, settings; going on or ended.",
    options=ReportOptions,
    run=report,
    positional="run",
    examples=(("a run below runs/", "accerl report quickstart"),),
)
