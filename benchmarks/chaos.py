"""The main job, whose processes, node and disk fail while it trains: does it go on, and lose nothing?

    make quickstart && python -m benchmarks.chaos --minutes 8 --seed 0

Two workers, two services and two ranks of the trainer, on a Ray cluster of two nodes (both this machine). A quiet
stretch, one with faults, a quiet one; then nothing is in flight any more and the episodes are counted. Last, the run is
resumed by new processes, for the throughput of the policy that it has by then, without any faults: one that succeeds
sooner begins more episodes, and that takes time too. The disk is
filled up only where the run's folder can be a small file system of its own (tmpfs, as root); logs and incidents stay in
runs/chaos-kept. Prints a table by kind of fault and, last, one line of JSON; appends to results/chaos.csv.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from accerl.runtime import chaos
from accerl.runtime.run import Run, launch
from benchmarks.local_cluster import LocalCluster
from benchmarks.main_job import add_arguments, config_of, throughput, wait_for_updates
from benchmarks.results_file import append, print_json, show

QUIET_SHARE = 0.125
"""Of the time, before and after the faults."""
WARM_UPDATES = 3
"""After which a resumed run is measured."""
BATCH_DECISIONS = 512
"""The recipe's; each rank gets its part."""
CAPACITY_DECISIONS = 16384
"""Of what is not trained on yet a trainer that is away for a minute leaves so much; in a full replay others wait."""
CHECKPOINT_EVERY_S = 10.0
"""A trainer that fails every half minute gets nowhere with those of a minute ago."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=8.0)
    parser.add_argument("--every-s", type=float, default=8.0)
    parser.add_argument("--nodes", type=int, default=2)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--disk-mb", type=int, default=1024, help="size of the disk that is filled up; 0: none is")
    add_arguments(parser, Path("runs/chaos"))
    arguments = parser.parse_args()
    with small_disk(arguments.root, arguments.disk_mb), nodes(arguments.nodes) as cluster:
        fields = {
            "cluster.address": cluster.address,
            "learner.checkpoint_every_s": CHECKPOINT_EVERY_S,
            "replay.capacity_decisions": CAPACITY_DECISIONS,
        }
        each = BATCH_DECISIONS // arguments.ranks
        ranks = {"learner.num_ranks": arguments.ranks, "learner.zero_stage": 2, "learner.micro_batch_decisions": each}
        config = config_of(arguments, **fields, **(ranks if arguments.ranks > 1 else {}))
        run = launch(config)
        try:
            row, outcomes = tried(run, cluster.add, 60 * arguments.minutes, arguments.every_s, arguments.seed)
            if not row["runs_ended"]:
                run.stop()
                made = run.status()["updates"]
                run = launch(config, resume=True)
                wait_for_updates(run, made + WARM_UPDATES)
                resumed = throughput(run, 60 * arguments.minutes * QUIET_SHARE)
                row["throughput_after_over_resumed"] = row["throughput_after"] / resumed
        finally:
            run.stop()
            keep(run.folder, arguments.root.with_name(f"{arguments.root.name}-kept"))
    show("recovery by kind of fault", ("kind", "faults", "recovered", "mean_s", "max_s"), by_kind(outcomes))
    append("chaos", [row], arguments.results)
    print_json("chaos", row)
    return 0


@contextmanager
def small_disk(folder: Path, size_mb: int) -> Iterator[None]:
    """A file system of its own at a folder, of which nothing stays; where that may not be made, the folder alone."""
    folder.mkdir(parents=True, exist_ok=True)
    if not size_mb or os.geteuid() != 0:
        print("no file system of its own for the run: its disk is not filled up", file=sys.stderr)
        yield
        return
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size_mb}m", "accerl-chaos", str(folder)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def keep(folder: Path, where: Path) -> None:
    """What the run says of itself, whose own file system goes."""
    shutil.copytree(folder, where / folder.name, ignore=shutil.ignore_patterns("*.safetensors", "*.filler"))
    print(f"logs and incidents: {where / folder.name}", file=sys.stderr)


@contextmanager
def nodes(number: int) -> Iterator[LocalCluster]:
    """A cluster of so many on this machine, which this process may join."""
    with tempfile.TemporaryDirectory(prefix="accerl-") as folder, LocalCluster(Path(folder)) as cluster:
        os.environ.update(cluster.environment)
        for _ in range(number - 1):
            cluster.add()
        yield cluster


def tried(
    run: Run, add_node: Callable[[], Any], seconds: float, every_s: float, seed: int
) -> tuple[dict[str, Any], list[chaos.Outcome]]:
    """What to report, and each fault.

    Args:
        add_node: called after a node was lost.
    """
    wait_for_updates(run)
    first = run.metrics()[-1]
    before = throughput(run, QUIET_SHARE * seconds)
    faults = chaos.plan((1 - 2 * QUIET_SHARE) * seconds, every_s, seed, chaos.kinds_of(run))
    outcomes, ended = [], ""
    try:
        for outcome in chaos.unleash(run, faults):
            outcomes.append(outcome)
            print(f"{outcome.fault.kind} {outcome.role}: {outcome.recovered_s or 'never'} s", file=sys.stderr)
            if outcome.fault.kind == "kill-node":
                add_node()
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
        "max_recovery_s": chaos.slowest(each for each in outcomes if not each.is_of_trainer),
        "max_trainer_recovery_s": chaos.slowest(each for each in outcomes if each.is_of_trainer),
        "throughput_before": before,
        "throughput_after": after,
        "throughput_after_over_before": after / before,
        "throughput_after_over_resumed": 0.0,
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
