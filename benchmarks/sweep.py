"""Many runs, each a row of a results file as soon as it is done: stopped at any time, gone on with at the next call."""

from __future__ import annotations

import csv
import multiprocessing
from collections.abc import Callable, Sequence
from typing import Any

from benchmarks import results_file


def sweep(
    name: str,
    key: Sequence[str],
    wanted: Sequence[dict[str, Any]],
    play: Callable[[dict[str, Any]], dict[str, Any]],
    processes: int,
) -> list[dict[str, str]]:
    """The rows of all `wanted` runs, after those that are not in `results/NAME.csv` yet were played.

    Args:
        key: columns that make two runs the same; a wanted run has these alone.
        play: gives the row of a run; called in a process of its own.
    """
    known = {_identity(row, key) for row in read(name)}
    missing = [run for run in wanted if _identity(run, key) not in known]
    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        for number, row in enumerate(pool.imap_unordered(play, missing), start=1):
            results_file.append(name, [row])
            what = "  ".join(f"{column} {row[column]}" for column in key)
            print(f"{number} of {len(missing)}: {what}  success {row['success']:.2f}", flush=True)
    identities = {_identity(run, key) for run in wanted}
    return [row for row in read(name) if _identity(row, key) in identities]


def read(name: str) -> list[dict[str, str]]:
    """The rows that are there."""
    path = results_file.RESULTS / f"{name}.csv"
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def _identity(row: dict[str, Any], key: Sequence[str]) -> tuple[str, ...]:
    return tuple(str(row[name]) for name in key)
