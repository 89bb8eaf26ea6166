"""The main job, whose processes are killed, stopped and slowed while it trains: does it go on, and lose nothing?

    make quickstart && python -m benchmarks.chaos --minutes 8 --seed 0

A quiet stretch, one with faults, a quiet one; then nothing is in flight any more and the episodes are counted. Prints a
table by kind of fault and, last, one line of JSON; appends to results/chaos.csv.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

from accerl.runtime import chaos
from accerl.runtime.run import Run, launch
from benchmarks.main_job import add_arguments, config_of, throughput, wait_for_updates
from benchmarks.results_file import append, print_json, show

QUIET_SHARE = 0.125
"""Of the time, before and after the faults."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=8.0)
    parser.add_argument("--every-s", type=float, default=8.0)
    add_arguments(parser, Path("runs/chaos"))
    arguments = parser.parse_args()
    run = launch(config_of(arguments))
    try:
        row, outcomes = tried(run, 60 * arguments.minutes, arguments.every_s, arguments.seed)
    finally:
        run.stop()
    show("recovery by kind of fault", ("kind", "faults", "recovered", "mean_s", "max_s"), by_kind(outcomes))
    append("chaos", [row], arguments.results)
    print_json("chaos", row)
    return 0


def tried(run: Run, seconds: float, every_s: float, seed: int) -> tuple[dict[str, Any], list[chaos.Outcome]]:
    """What to report, and each fault."""
    wait_for_updates(run)
    first = run.metrics()[-1]
    before = throughput(run, QUIET_SHARE * seconds)
    faults = chaos.plan((1 - 2 * QUIET_SHARE) * seconds, every_s, seed)
    outcomes, ended = [], ""
    try:
        outcomes = list(chaos.unleash(run, faults))
        after = throughput(run, QUIET_SHARE * seconds)
    except RuntimeError as error:
        ended, after = str(error), 0.0
    row = {
        "seed": seed,
        "minutes": seconds / 60,
        "faults": len(outcomes),
        "kinds": len({outcome.fault.kind for outcome in outcomes}),
        "lost_episodes_beyond_in_flight": -1 if ended else lost(run),
        "decisions_lost_beyond_in_flight": -1 if ended else unaccounted(run),
        "runs_ended": int(bool(ended)),
        "without_recovery": sum(outcome.recovered_s is None for outcome in outcomes),
        "max_recovery_s": chaos.summarised(outcomes, lambda role: not role.startswith("learner")),
        "max_trainer_recovery_s": chaos.summarised(outcomes, lambda role: role.startswith("learner")),
        "throughput_after_over_before": after / before,
        "success_before": first["success"],
        "success_after": run.metrics()[-1]["success"],
        "incidents": len(run.incidents()),
        "reason": ended,
    }
    return row, outcomes


def lost(run: Run) -> int:
    """Episodes that were played and are neither trained on nor in the replay, once nothing is in flight."""
    run.pause()
    while run.counters()["episodes_in_flight"]:
        time.sleep(0.5)
    return run.lost_episodes()


def unaccounted(run: Run) -> int:
    """Decisions of finished episodes that no shard has ever taken; `lost` has paused the run."""
    return max(0, run.counters()["decisions"] - run.pushed_decisions())


def by_kind(outcomes: list[chaos.Outcome]) -> list[dict[str, Any]]:
    rows = []
    for kind in sorted({outcome.fault.kind for outcome in outcomes}):
        times = [outcome.recovered_s for outcome in outcomes if outcome.fault.kind == kind]
        known = [seconds for seconds in times if seconds is not None]
        mean = sum(known) / len(known) if known else None
        recovery = {"recovered": len(known), "mean_s": mean, "max_s": max(known, default=None)}
        rows.append({"kind": kind, "faults": len(times), **recovery})
    return rows


if __name__ == "__main__":
    sys.exit(main())
