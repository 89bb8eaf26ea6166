"""The quickstart's training as a run that does not end by itself, for benchmarks of what a run goes through."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

from accerl.cli.options import find_file
from accerl.config import RunConfig, merge, read_file
from accerl.runtime.run import Run


def add_arguments(parser: argparse.ArgumentParser, root: Path) -> None:
    """What `config_of` wants, and the folder for the CSV."""
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--policy", type=Path, default=Path("runs/quickstart-start/policy"), help="that the job starts from"
    )
    parser.add_argument("--root", type=Path, default=root)
    parser.add_argument("--results", type=Path, help="folder for the CSV; default: benchmarks/results")
    parser.add_argument("options", nargs="*", help="settings of the run, as name=value, after --")


def config_of(arguments: argparse.Namespace, **fields: Any) -> RunConfig:
    """The quickstart's recipe with two workers and two services; `fields`, and then what was given, come on top."""
    own = {
        "name": f"seed{arguments.seed}-{int(time.time())}",
        "root": arguments.root,
        "seed": arguments.seed,
        "policy.checkpoint": arguments.policy,
        "rollout.num_workers": 2,
        "rollout.slots_per_worker": 8,
        "inference.num_services": 2,
        "limits.max_wall_s": 7200,
    }
    given = dict(option.split("=", 1) for option in arguments.options)
    return RunConfig(**merge(read_file(find_file("quickstart")), {**own, **fields, **given}))


def wait_for_updates(run: Run, number: int = 1) -> None:
    """Until it has made so many.

    Raises:
        RuntimeError: it has ended before.
    """
    while (status := run.status()).get("updates", 0) < number:
        if status["state"] not in ("starting", "running"):
            raise RuntimeError(f"the run is {status['state']}: {status['reason']}")
        time.sleep(0.5)


def throughput(run: Run, seconds: float) -> float:
    """Decisions a second, over that time."""
    before, began = run.counters()["decisions"], time.monotonic()
    time.sleep(seconds)
    return (run.counters()["decisions"] - before) / (time.monotonic() - began)
