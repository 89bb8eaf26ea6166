"""Decisions a second of the whole runtime when neither simulator nor model costs anything.

    python benchmarks/overhead.py --seconds 60

All real processes: rollout, inference, replay, learner, controller. Frames of 224 pixels, a policy of 256 hidden
features, global batches of 16 x 2 decisions, every decision trained on once. Prints a table and, last, one line of
JSON; appends to results/overhead.csv.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import accerl
from accerl.config import RunConfig, merge
from benchmarks.results_file import append, print_json, show

WARM_UP_S = 10.0
COLUMNS = (
    *("decisions_per_s", "trained_decisions_per_s", "updates_per_s"),
    *("policy_lag_mean", "policy_lag_max", "discarded_decisions"),
    *("rollout_busy", "inference_busy", "learner_busy"),
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60.0, help="measured, after the warm-up")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--root", type=Path, default=Path("runs/overhead"))
    parser.add_argument("overrides", nargs="*", metavar="FIELD=VALUE", help="of the run's configuration")
    arguments = parser.parse_args()
    overrides = dict(override.split("=", 1) for override in arguments.overrides)
    row = measure(arguments.root, arguments.seconds, arguments.seed, overrides)
    show("the runtime itself: 224 px, 256 hidden, batches of 16 x 2", COLUMNS, [row])
    append("overhead", [row])
    print_json("overhead", row)
    return 0


def measure(root: Path, seconds: float, seed: int, overrides: dict[str, Any]) -> dict[str, Any]:
    """Start a run, let it settle, and take what it did in `seconds`."""
    config = RunConfig(**merge({}, settings(root, seed) | overrides))
    shutil.rmtree(config.folder, ignore_errors=True)
    with accerl.launch(config) as run:
        first = wait_for_line(run, after_s=WARM_UP_S)
        last = wait_for_line(run, after_s=first["wall_s"] + seconds)
    elapsed = last["wall_s"] - first["wall_s"]
    during = [line for line in run.metrics() if first["wall_s"] < line["wall_s"] <= last["wall_s"]]
    if run.incidents():
        raise RuntimeError(f"the run had incidents: {run.incidents()}")
    return {
        "seed": seed,
        "seconds": elapsed,
        "decisions_per_s": (last["decisions"] - first["decisions"]) / elapsed,
        "trained_decisions_per_s": (last["trained_decisions"] - first["trained_decisions"]) / elapsed,
        "updates_per_s": (last["updates"] - first["updates"]) / elapsed,
        "policy_lag_mean": last["run_policy_lag_mean"],
        "policy_lag_max": last["run_policy_lag_max"],
        "discarded_decisions": last["discarded_decisions"],
        **{key: sum(line[key] for line in during) / len(during) for key in COLUMNS if key.endswith("_busy")},
    }


def settings(root: Path, seed: int) -> dict[str, Any]:
    """The run that is measured."""
    return {
        "name": "overhead",
        "root": root,
        "seed": seed,
        "env.suite": "benchmarks.fakes:fake_env",
        "env.tasks": ("first", "second"),
        "env.image_size": 224,
        "env.chunk_length": 8,
        "env.steps_per_action": 1,
        "env.max_decisions": 64,
        "policy.kind": "benchmarks.fakes:FakePolicy",
        "rollout.slots_per_worker": 16,
        "rollout.segment_decisions": 16,
        "inference.batch_size": 16,
        "inference.adaptive_wait": False,  # training is what binds: full batches leave it more of the two cores
        "inference.max_wait_s": 0.05,
        "learner.batch_decisions": 32,
        "learner.micro_batch_decisions": 16,
        "learner.recompute": "fused",
        "learner.value_warmup_updates": 0,
        "learner.checkpoint_every_s": 1e6,
        "replay.max_reuse": 1,
        "replay.min_decisions": 32,
        "replay.capacity_decisions": 2048,
        "cluster.object_store_mb": 400,
    }


def wait_for_line(run: accerl.Run, after_s: float) -> dict[str, Any]:
    """The first line of metrics that is later than that many seconds of training."""
    while True:
        state = run.status()
        if state["state"] in ("failed", "dead"):
            raise RuntimeError(f"the run ended: {state['reason']}")
        late = [line for line in run.metrics() if line["wall_s"] > after_s]
        if late:
            return late[0]
        time.sleep(0.5)


if __name__ == "__main__":
    sys.exit(main())
