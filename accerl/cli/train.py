"""`accerl train`."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from accerl.cli.command import Command
from accerl.cli.options import RunOptions, from_file
from accerl.config import ConfigError
from accerl.console import ending, follow, say

if TYPE_CHECKING:
    from accerl.runtime.run import Run

INTERRUPTED = 130
AUTO: Literal["auto"] = "auto"


class TrainOptions(RunOptions):
    """A run, and how to start it."""

    resume: bool | str = False
    """Go on from the newest checkpoint of a run: its name below `root`, or its folder; default: the one called `name`.
    Its settings are kept, apart from those given here. `auto`: if the run called `name` has ended or died; else start
    it."""
    detach: bool = False
    """Start the run and return: it goes on without this terminal."""


def train(options: TrainOptions) -> int:
    from accerl.runtime.run import launch

    config = options.run_config()
    how = AUTO if options.resume == AUTO else bool(options.resume)
    if options.detach:
        run = launch(config, resume=how)
        say(f"started {run.folder}")
        say(f"watch it with `accerl attach {run.folder}`, end it with `accerl stop {run.folder}`")
        return 0
    run = launch(config, resume=how, owner_pid=os.getpid())
    try:
        state = follow(run)
    except KeyboardInterrupt:
        stop(run)
        return INTERRUPTED
    if state != "finished":
        reason = run.status().get("reason") or "for an unknown reason"
        raise RuntimeError(f"{run.folder}: the run {state} ({reason}); see {run.folder / 'logs'}")
    say(f"finished: {run.folder}")
    return 0


def stop(run: Run) -> None:
    """End a run of this process and say how to go on with it. A second interruption leaves at once."""
    say(f"stopping {run.folder}: a checkpoint is written ...")
    try:
        run.stop()
    except KeyboardInterrupt:
        say(f"left {run.folder}, which ends by itself in a few seconds, now that nobody follows it")
    else:
        say(ending(run))


def resumed_or_from_file(model: type[TrainOptions], values: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of the run that is to be resumed, if one is, or else of the configuration file."""
    fields = from_file(model, values)
    if not (resume := values.get("resume")):
        return fields
    from accerl.runtime.run import attach

    default = TrainOptions()
    name = (
        resume
        if isinstance(resume, str) and resume != AUTO
        else values.get("name") or fields.get("name") or default.name
    )
    try:
        run = attach(name, Path(values.get("root") or fields.get("root") or default.root))
    except ConfigError as error:
        if resume == AUTO:
            return fields
        raise ConfigError(str(error).replace("run:", "resume:", 1)) from None
    if "config" not in values:
        fields = run.config.model_dump(mode="json")
    return {**fields, "name": run.folder.name, "root": run.folder.parent}


COMMAND = Command(
    name="train",
    summary="Train a policy asynchronously, in processes of its own, and show how it goes.",
    options=TrainOptions,
    run=train,
    base=resumed_or_from_file,
    examples=(
        ("a recipe, with one thing changed", "accerl train --config quickstart --learner.policy-lr 1e-4"),
        (
            "a small world without a simulator",
            "accerl train --env.suite dots --env.tasks red,blue --limits.max-wall-s 60",
        ),
        ("go on after an interruption", "accerl train --resume runs/run"),
        ("the same command after whatever happened", "accerl train --config quickstart --name mine --resume auto"),
        ("train longer than was planned", "accerl train --resume runs/run --limits.max-wall-s 1200"),
    ),
)
