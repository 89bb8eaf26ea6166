"""`accerl stop`."""

from __future__ import annotations

from pathlib import Path

from accerl.cli.command import Command
from accerl.config import PositiveFloat, Section
from accerl.console import ENDED, ending, say


class StopOptions(Section):
    """Which run."""

    run: str
    """Its name below `root`, or its folder."""
    root: Path = Path("runs")
    """Folder that holds the runs."""
    timeout_s: PositiveFloat = 30.0
    """Seconds after which its processes are ended without a checkpoint of the last moments."""


def stop(options: StopOptions) -> int:
    from accerl.runtime.run import attach

    run = attach(options.run, options.root)
    state = run.status()["state"]
    if state in ENDED:
        say(f"{run.folder} is not running: {state}")
        return 0
    run.stop(options.timeout_s)
    say(ending(run))
    return 0


COMMAND = Command(
    name="stop",
    summary="Checkpoint a run and end its processes.",
    options=StopOptions,
    run=stop,
    positional="run",
    examples=(("a run below runs/", "accerl stop quickstart"),),
)
