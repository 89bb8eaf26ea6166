"""The main job for half an hour: does any process of it grow, and what is left when it has ended?

    make quickstart && python -m benchmarks.soak --minutes 30

Looks at every process of the run every ten seconds: the memory that is its own (USS), its open files, its threads.
After a warm-up a straight line is fitted to each. Prints a table by process and, last, one line of JSON; appends to
results/soak.csv; what was seen is in looks.csv beside the run.
"""

from __future__ import annotations

import argparse
import csv
import os
import sys
import time
from collections import defaultdict
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import psutil

from accerl.runtime import strikes
from accerl.runtime.cluster import Connection
from accerl.runtime.run import Run, launch
from benchmarks.main_job import add_arguments, config_of, wait_for_updates
from benchmarks.results_file import append, print_json, show

LOOK_EVERY_S = 10.0
WARM_UP_SHARE = 1 / 3
"""Of the time: the replay fills up, libraries are loaded, allocators find their size."""
GONE_WITHIN_S = 10.0
MIB = 2**20


class Look(NamedTuple):
    """At one process, at one time."""

    at_s: float
    memory_mb: float
    """That would be free if it ended."""
    files: int
    threads: int


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30.0)
    add_arguments(parser, Path("runs/soak"))
    arguments = parser.parse_args()
    before = left_behind()
    run = launch(config_of(arguments))
    try:
        wait_for_updates(run)
        looks, processes = watched(run, 60 * arguments.minutes)
        counters, decisions_per_s = run.counters(), run.metrics()[-1]["decisions_per_s"]
    finally:
        run.stop()
    with (run.folder / "looks.csv").open("w", newline="") as file:
        csv.writer(file).writerows(
            [("process", *Look._fields), *((name, *look) for name in looks for look in looks[name])]
        )
    rows = [grown(name, series) for name, series in sorted(looks.items())]
    columns = ("process", "looks", "memory_mb", "percent_per_hour", "standard_error", "files_grown", "threads_grown")
    show("after the warm-up", columns, rows)
    row = {
        "seed": arguments.seed,
        "minutes": arguments.minutes,
        "processes": len(rows),
        "restarted": len({pid for pid, _ in processes}) - len(rows),
        "max_percent_per_hour": max(row["percent_per_hour"] for row in rows),
        "all_percent_per_hour": grown("all", summed(looks))["percent_per_hour"],
        "max_files_grown": max(row["files_grown"] for row in rows),
        "max_threads_grown": max(row["threads_grown"] for row in rows),
        "processes_left": len(alive(processes)),
        "shared_memory_left": len(left_behind() - before),
        "decisions": counters["decisions"],
        "decisions_per_s": decisions_per_s,
        "incidents": counters["incidents"],
    }
    append("soak", [row], arguments.results)
    print_json("soak", row)
    return 0


def watched(run: Run, seconds: float) -> tuple[dict[str, list[Look]], set[tuple[int, float]]]:
    """What was seen of each process, by name; and all of them as numbers and times of their starts.

    Raises:
        RuntimeError: the run has ended.
    """
    connection = Connection.load(run.folder)
    assert connection is not None
    host = psutil.Process(connection.host_pid)
    looks: dict[str, list[Look]] = defaultdict(list)
    seen: set[tuple[int, float]] = set()
    began = time.monotonic()
    while (passed_s := time.monotonic() - began) < seconds:
        roles = {beat.pid: name for name, beat in strikes.processes(run.folder).items()}
        for process in [host, *host.children(recursive=True)]:
            with suppress(psutil.NoSuchProcess):
                name = "host" if process == host else roles.get(process.pid) or f"{process.name()} {process.pid}"
                memory_mb = process.memory_full_info().uss / MIB
                looks[name].append(Look(passed_s, memory_mb, process.num_fds(), process.num_threads()))
                seen.add((process.pid, process.create_time()))
        if (status := run.status())["state"] != "running":
            raise RuntimeError(f"the run is {status['state']}: {status['reason']}")
        time.sleep(LOOK_EVERY_S)
    complete = {name: series for name, series in looks.items() if series[-1].at_s - series[0].at_s > seconds / 2}
    return complete, seen


def grown(name: str, series: Sequence[Look]) -> dict[str, Any]:
    """The line through one process's memory after the warm-up, and how many files and threads it has more at the end.

    The standard error takes what lies beside the line as independent from one sixth of the time to the next.
    """
    late = [look for look in series if look.at_s >= WARM_UP_SHARE * series[-1].at_s]
    hours = np.array([look.at_s for look in late]) / 3600
    memory = np.array([look.memory_mb for look in late])
    slope, _ = np.polyfit(hours, memory, 1)
    blocks = np.array_split(np.arange(len(late)), 6)
    means = np.array([[hours[block].mean(), memory[block].mean()] for block in blocks if len(block)])
    line = np.polyfit(means[:, 0], means[:, 1], 1)
    beside = means[:, 1] - np.polyval(line, means[:, 0])
    spread = np.sum((means[:, 0] - means[:, 0].mean()) ** 2)
    error = np.sqrt(np.sum(beside**2) / max(1, len(means) - 2) / spread)
    third = max(1, len(late) // 3)
    return {
        "process": name,
        "looks": len(late),
        "memory_mb": memory.mean(),
        "percent_per_hour": 100 * slope / memory.mean(),
        "standard_error": 100 * error / memory.mean(),
        "files_grown": max(look.files for look in late[-third:]) - max(look.files for look in late[:third]),
        "threads_grown": max(look.threads for look in late[-third:]) - max(look.threads for look in late[:third]),
    }


def summed(looks: dict[str, list[Look]]) -> list[Look]:
    """Over the processes, at the times of the one that was seen the fewest times."""
    shortest = min(len(series) for series in looks.values())
    columns = [series[-shortest:] for series in looks.values()]
    return [
        Look(at[0].at_s, sum(look.memory_mb for look in at), sum(look.files for look in at), 0)
        for at in zip(*columns, strict=True)
    ]


def alive(processes: set[tuple[int, float]]) -> set[tuple[int, float]]:
    """Those that still live, a while after their end was asked for."""
    deadline = time.monotonic() + GONE_WITHIN_S
    while (left := {each for each in processes if strikes.lives(*each)}) and time.monotonic() < deadline:
        time.sleep(0.2)
    return left


def left_behind() -> set[str]:
    """Files of ours in shared memory, and private folders."""
    places = [*Path("/dev/shm").glob("*"), *Path(os.environ.get("XDG_RUNTIME_DIR", "/tmp")).glob("accerl-*")]
    found = set()
    for path in places:
        with suppress(FileNotFoundError):
            if path.stat().st_uid == os.getuid():
                found.add(str(path))
    return found


if __name__ == "__main__":
    sys.exit(main())
