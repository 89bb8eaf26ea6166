"""Does the quickstart learn, whatever the seed? Runs it for several seeds and judges each summary.

    python benchmarks/quickstart_seeds.py --seeds 0 1 2

Prints a table and, last, one line of JSON; appends to results/quickstart_seeds.csv. About 15 minutes a seed on two
cores.
"""

from __future__ import annotations

import argparse
import csv
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

RESULTS = Path(__file__).parent / "results" / "quickstart_seeds.csv"
NUMBERS = (
    *("seed", "decisions", "env_steps", "train_wall_s", "decisions_per_s", "env_steps_per_s"),
    *("policy_lag_mean", "policy_lag_max", "discarded_decisions"),
    *("learner_busy", "inference_busy", "rollout_busy"),
)
RATES = ("success_start", "success_final", "greedy_start", "greedy_final", "success_shuffled_instruction")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--root", type=Path, default=Path("runs/quickstart-seeds"))
    parser.add_argument("options", nargs="*", help="passed on to the quickstart, after --")
    arguments = parser.parse_args()
    rows = []
    for seed in arguments.seeds:
        out = arguments.root / f"seed{seed}"
        command = ["-m", "accerl.quickstart", "--seed", str(seed), "--out", str(out), *arguments.options]
        subprocess.run([sys.executable, *command], check=True)
        rows.append(judge(json.loads((out / "summary.json").read_text())))
        write(rows[-1])
    show(rows)
    print(json.dumps({"benchmark": "quickstart_seeds", "met": all(row["met"] for row in rows), "rows": rows}))
    return 0


def judge(summary: dict[str, Any]) -> dict[str, Any]:
    """One flat row: the summary's numbers, each bar, and whether all of them are met."""
    start, final = summary["success_start"], summary["success_final"]
    greedy_start, greedy_final = summary["greedy_start"], summary["greedy_final"]
    worst = min(final["by_task"][task]["rate"] - start["by_task"][task]["rate"] for task in start["by_task"])
    bars = {
        "sampled_up_0.25_to_0.8": final["rate"] >= max(0.8, start["rate"] + 0.25),
        "intervals_apart": final["interval"][0] > start["interval"][1],
        "greedy_up_0.15_to_0.85": greedy_final["rate"] >= max(0.85, greedy_start["rate"] + 0.15),
        "no_task_down_0.1": worst >= -0.1,
        "language_matters_0.2": final["rate"] - summary["success_shuffled_instruction"]["rate"] >= 0.2,
        "cores_busy_0.9": min(summary["cores_busy"]) > 0.9,
    }
    return {
        **{key: summary[key] for key in NUMBERS},
        **{key: summary[key]["rate"] for key in RATES},
        "worst_task_change": worst,
        "cores_busy": min(summary["cores_busy"]),
        **bars,
        "met": all(bars.values()),
        "commit": summary["commit"],
        "machine": json.dumps(summary["machine"]),
    }


def write(row: dict[str, Any]) -> None:
    is_new = not RESULTS.exists()
    RESULTS.parent.mkdir(exist_ok=True)
    with RESULTS.open("a", newline="") as file:
        writer = csv.DictWriter(file, list(row))
        if is_new:
            writer.writeheader()
        writer.writerow(row)


def show(rows: list[dict[str, Any]]) -> None:
    table = Table("", *(f"seed {row['seed']}" for row in rows))
    for key in rows[0]:
        if key not in ("seed", "commit", "machine"):
            values = [row[key] for row in rows]
            table.add_row(key, *(f"{value:.3g}" if isinstance(value, float) else str(value) for value in values))
    Console().print(table)


if __name__ == "__main__":
    sys.exit(main())
