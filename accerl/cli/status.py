"""`accerl status`."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from accerl.cli.command import Command
from accerl.config import Section
from accerl.console import duration, interval, number, output, picture, say

if TYPE_CHECKING:
    from accerl.runtime.run import Run


class StatusOptions(Section):
    """Which run."""

    run: str | None = None
    """Its name below `root`, or its folder; default: all runs below `root`."""
    root: Path = Path("runs")
    """Folder that holds the runs."""


def status(options: StatusOptions) -> int:
    from accerl.runtime.run import attach, runs

    console = output()
    if options.run is not None:
        details(attach(options.run, options.root), console)
    elif found := runs(options.root):
        console.print(overview(found))
    else:
        say(f"no runs below {options.root}; `accerl train` starts one")
    return 0


def details(run: Run, console: Console) -> None:
    """The picture that `accerl attach` shows, once, and where things are."""
    console.print(picture(run.folder, run.config.limits, run.status(), run.metrics(), run.incidents()))
    for name, path in (
        ("metrics", run.folder / "metrics.jsonl"),
        ("curves", f"tensorboard --logdir {run.folder / 'tensorboard'}"),
        *(("checkpoint", path) for path in run.checkpoints()),
    ):
        say(f"{name:<10}  {path}")


def overview(found: list[Run]) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for name in ("run", "state", "success", "decisions", "trained", "changed"):
        table.add_column(name, no_wrap=True)
    for run in found:
        now = run.status()
        age = f"{duration(time.time() - now['updated'])} ago" if "updated" in now else "-"
        decisions = number(now.get("decisions"))
        table.add_row(run.name, now["state"], interval(now), decisions, duration(now.get("wall_s")), age)
    return table


COMMAND = Command(
    name="status",
    summary="Show the state of one run, or list all of them.",
    options=StatusOptions,
    run=status,
    positional="run",
    examples=(("all runs", "accerl status"), ("one run", "accerl status quickstart")),
)
