"""How long does the learner wait for data when it is what limits the run?

    python -m benchmarks.data_wait --seconds 90

The quickstart's job with all its processes and real MuJoCo, from random weights, each decision trained on up to 64
times: there is always something to train on, so the learner waits for nothing but the prefetcher. `data_wait_share` is
the share of its time without a micro-batch, `learner_busy` that in which it trained; the rest is publication and
checkpoints.

Prints a table and, last, one line of JSON; appends to results/data_wait.csv. Two minutes.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path
from typing import Any

import accerl
from accerl.cli.options import RECIPES
from accerl.config import RunConfig, merge, read_file
from benchmarks.overhead import wait_for_line
from benchmarks.results_file import append, print_json, show

BAR = 0.02
FIRST_UPDATES = 5
"""Which are not counted: the replay fills and the prefetcher gets ahead."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=90.0, help="measured, after the first updates")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--root", type=Path, default=Path("runs/data-wait"))
    options = parser.parse_args()
    row = measure(options.root, options.seconds, options.seed)
    show("a run that the learner limits", list(row), [row])
    append("data_wait", [row])
    print_json("data_wait", {**row, "met": row["data_wait_share"] < BAR})
    return 0


def measure(root: Path, seconds: float, seed: int) -> dict[str, Any]:
    """Start a run, let it train, and take the means over `seconds`."""
    config = RunConfig(**merge(_run_sections(read_file(RECIPES / "quickstart.toml")), settings(root, seed)))
    shutil.rmtree(config.folder, ignore_errors=True)
    with accerl.launch(config) as run:
        first = wait_for_line(run, after_s=0.0)
        while first.get("updates", 0) < FIRST_UPDATES:
            first = wait_for_line(run, after_s=first["wall_s"])
        last = wait_for_line(run, after_s=first["wall_s"] + seconds)
    during = [line for line in run.metrics() if first["wall_s"] < line["wall_s"] <= last["wall_s"]]
    means = {
        name: sum(line[name] for line in during) / len(during)
        for name in ("data_wait_share", "learner_busy", "publish_share")
    }
    return {
        "seed": seed,
        "seconds": last["wall_s"] - first["wall_s"],
        "updates": last["updates"] - first["updates"],
        "uses_per_decision": (last["trained_decisions"] - first["trained_decisions"])
        / max(1, last["decisions"] - first["decisions"]),
        **means,
    }


def settings(root: Path, seed: int) -> dict[str, Any]:
    return {
        "name": f"seed{seed}",
        "root": root,
        "seed": seed,
        "replay.max_reuse": 64,
        "limits.max_wall_s": 600,
    }


def _run_sections(recipe: dict[str, Any]) -> dict[str, Any]:
    """Of a recipe, those that a run has."""
    return {name: section for name, section in recipe.items() if name in RunConfig.model_fields}


if __name__ == "__main__":
    raise SystemExit(main())
