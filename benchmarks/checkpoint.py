"""How long does a checkpoint hold the learner up?

    python benchmarks/checkpoint.py [--mib 16 128] [--rounds 5]

A learner whose parameters take so many MiB and AdamW's moments twice as many. `by the learner`: it copies its state and
waits for the rest; `beside`: it copies, and a thread writes, checksums, syncs and renames (`accerl.checkpoint_writer`).
Medians over rounds of the time until the learner may go on, and until the checkpoint is on disk. Prints a table and,
last, one line of JSON; appends to results/checkpoint.csv.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from accerl.checkpoint import Content
from accerl.checkpoint_writer import CheckpointWriter
from accerl.engine import copied_state
from benchmarks.results_file import append, print_json, show

TENSORS = 16


class Trained:
    """What a learner holds: parameters and an optimizer's state."""

    def __init__(self, mib: int):
        size = mib * 2**20 // 4 // TENSORS
        self.parameters = {str(number): torch.randn(size) for number in range(TENSORS)}
        entries = {n: {"exp_avg": torch.randn(size), "exp_avg_sq": torch.rand(size)} for n in range(TENSORS)}
        self.optimizer = {"state": entries, "param_groups": []}
        self.updates = 0

    def take(self) -> Callable[[], Content]:
        self.updates += 1
        content = Content(
            policy_config={},
            policy={name: tensor.to("cpu", copy=True) for name, tensor in self.parameters.items()},
            learner={"updates": self.updates, "version": 0, "optimizer": copied_state(self.optimizer)},
            run={},
        )
        return lambda: content


def row(mib: int, rounds: int, folder: Path) -> dict[str, Any]:
    trained = Trained(mib)
    seconds: dict[str, list[float]] = {"sync": [], "held": [], "written": []}
    for _ in range(rounds):
        writer = CheckpointWriter(folder, 1, False, 1e9, lambda reason: sys.exit(reason))
        for name in ("sync", "held"):
            started = time.perf_counter()
            writer.save(trained.take)
            if name == "held":
                seconds["held"].append(time.perf_counter() - started)
            writer.finish()
            seconds["sync" if name == "sync" else "written"].append(time.perf_counter() - started)
        writer.close()
    sync, held, written = (1e3 * statistics.median(seconds[name]) for name in ("sync", "held", "written"))
    return {
        "mib": mib,
        "checkpoint_mib": 3 * mib,
        "by_the_learner_ms": sync,
        "beside_ms": held,
        "ratio": sync / held,
        "on_disk_ms": written,
        "mib_per_s": 3e3 * mib / written,
        "rounds": rounds,
    }


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--mib", type=int, nargs="+", default=[16, 128, 512])
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for mib in arguments.mib:
        with tempfile.TemporaryDirectory() as folder:
            rows.append(row(mib, arguments.rounds, Path(folder)))
    show("The learner stands still for a checkpoint", list(rows[0]), rows)
    append("checkpoint", rows)
    print_json("checkpoint", {"rows": rows})
    return 0


if __name__ == "__main__":
    sys.exit(main())
