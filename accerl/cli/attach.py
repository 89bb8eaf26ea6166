"""`accerl attach`."""

from __future__ import annotations

from pathlib import Path

from accerl.cli.command import Command
from accerl.config import Section
from accerl.console import follow, say


class AttachOptions(Section):
    """Which run."""

    run: str
    """Its name below `root`, or its folder."""
    root: Path = Path("runs")
    """Folder that holds the runs."""


def watch(options: AttachOptions) -> int:
    from accerl.runtime.run import attach

    run = attach(options.run, options.root)
    try:
        state = follow(run)
    except KeyboardInterrupt:
        say(f"{run.folder} goes on; `accerl stop {run.folder}` ends it")
        return 0
    say(f"{run.folder}: {state}")
    return 0 if state == "finished" else 1


COMMAND = Command(
    name="attach",
    summary="Follow a run that another terminal or a notebook started; Ctrl-C leaves it running.",
    options=AttachOptions,
    run=watch,
    positional="run",
    examples=(("a run below runs/", "accerl attach quickstart"), ("any run", "accerl attach /data/runs/long")),
)
