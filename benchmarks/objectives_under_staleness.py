"""What does each objective make of data from an older policy? Success against policy lag, for all objectives.

    python -m benchmarks.objectives_under_staleness --processes 2

The learning problem is `benchmarks.state_study`: the policy that acts stays 0, 4, 16 or 64 versions behind the one that
trains, for the whole run. Everything else is the same for all: start, learning rates, batches, number of decisions, no
KL to hold the policy. Objectives have their default settings. A run's score is the success of its last policy, sampled,
in 50 episodes of each of two tasks; a row of the table is the interquartile mean over seeds and tasks, with a 95 %
bootstrap interval (rliable's definitions).

A run takes about a minute of one core, all 200 of them two hours on two. Each is a row of
results/objectives_under_staleness.csv as soon as it is done; what is there with the same settings is not run again, so
it can be stopped at any time, and gone on with. Prints a table and, last, one line of JSON; draws
results/objectives_under_staleness.png.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from benchmarks.interquartile import bootstrap_interval, interquartile_mean
from benchmarks.results_file import RESULTS, print_json, show
from benchmarks.sweep import sweep

NAME = "objectives_under_staleness"
OBJECTIVES: dict[str, dict[str, Any]] = {
    "gipo": {"kind": "gipo"},
    "gipo_sigma_1": {"kind": "gipo", "sigma": 1.0},
    **{
        kind: {"kind": kind}
        for kind in ("ppo", "dual_clip_ppo", "decoupled_ppo", "importance_sampling", "tis", "mis", "cispo", "sapo")
    },
}
"""With their default settings, GIPO also with a wider trust: 1 instead of 0.2."""
KEY = ("objective", "lag", "seed", "num_decisions", "policy_lr")
"""What makes two runs the same."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--objectives", nargs="+", choices=OBJECTIVES, default=list(OBJECTIVES))
    parser.add_argument("--lags", nargs="+", type=int, default=[0, 4, 16, 64])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3, 4])
    parser.add_argument("--num-decisions", type=int, default=8000)
    parser.add_argument("--policy-lr", type=float, default=3e-4)
    parser.add_argument("--processes", type=int, default=1)
    options = parser.parse_args()
    wanted: list[dict[str, Any]] = [
        dict(zip(KEY, (objective, lag, seed, options.num_decisions, options.policy_lr), strict=True))
        for seed in options.seeds
        for lag in options.lags
        for objective in options.objectives
    ]
    report(sweep(NAME, KEY, wanted, play, options.processes))
    return 0


def play(run: dict[str, Any]) -> dict[str, Any]:
    """One run, as a row of the results."""
    from benchmarks import state_study

    setting = state_study.Setting(
        objective=OBJECTIVES[run["objective"]],
        learner={"policy_lr": run["policy_lr"]},
        lag=run["lag"],
        seed=run["seed"],
        num_decisions=run["num_decisions"],
    )
    outcome = state_study.train(setting)
    updates = outcome.updates
    return {
        **run,
        "success": float(np.mean(outcome.rates)),
        "rates": json.dumps(outcome.rates),
        "start": state_study.start_success(run["seed"]),
        "curve": json.dumps([round(value, 3) for value in outcome.curve]),
        "updates": len(updates),
        **{
            name: state_study.late_mean(updates, name)
            for name in ("policy_lag_mean", "abs_log_ratio_p95", "effective_sample_size", "dead_fraction", "entropy")
        },
        "wall_s": outcome.wall_s,
    }


def report(rows: Sequence[dict[str, Any]]) -> None:
    """Table, picture and JSON of the runs that are there."""
    table = summarize(rows)
    columns = ["objective", "lag", "runs", "success", "low", "high", "abs_log_ratio_p95", "effective_sample_size"]
    show("interquartile mean of the success, by policy lag in versions", columns, table)
    draw(table)
    success = {(row["objective"], row["lag"]): row["success"] for row in table}
    lags = sorted({row["lag"] for row in table})
    ends = {f"{name}_{lag}": success.get((name, lag)) for name in ("gipo", "ppo") for lag in (lags[0], lags[-1])}
    compared = success.get(("gipo", lags[-1])), success.get(("ppo", lags[-1]))
    ratio = compared[0] / max(compared[1], 1e-9) if compared[0] is not None and compared[1] is not None else None
    print_json(NAME, {**ends, "gipo_over_ppo": ratio, "runs": len(rows), "rows": table})


def summarize(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """A row for each objective and lag, over the seeds."""
    table = []
    for objective in dict.fromkeys(row["objective"] for row in rows):
        for lag in sorted({int(row["lag"]) for row in rows}):
            runs = [row for row in rows if (row["objective"], int(row["lag"])) == (objective, lag)]
            if not runs:
                continue
            scores = np.array([json.loads(row["rates"]) for row in runs])
            low, high = bootstrap_interval(scores)
            means = {
                name: float(np.mean([float(row[name]) for row in runs]))
                for name in ("start", "abs_log_ratio_p95", "effective_sample_size", "dead_fraction")
            }
            iqm = interquartile_mean(scores)
            table.append(
                {"objective": objective, "lag": lag, "runs": len(runs), "success": iqm, "low": low, "high": high}
            )
            table[-1].update(means)
    return table


def draw(table: Sequence[dict[str, Any]]) -> None:
    """Success over lag, a line an objective."""
    figure, axes = plt.subplots(figsize=(8.5, 4.8), layout="constrained")
    lags = sorted({row["lag"] for row in table})
    objectives = list(dict.fromkeys(row["objective"] for row in table))
    for number, objective in enumerate(objectives):
        rows = [row for row in table if row["objective"] == objective]
        place = [lags.index(row["lag"]) + 0.06 * (number - (len(objectives) - 1) / 2) for row in rows]
        middle = np.array([row["success"] for row in rows])
        error = np.abs(np.array([[row["low"], row["high"]] for row in rows]).T - middle)
        color, width = ("black", 2.5) if objective == "gipo" else (None, 1.2)
        axes.errorbar(place, middle, error, label=objective, color=color, linewidth=width, capsize=2, marker="o")
    axes.axhline(float(np.mean([row["start"] for row in table])), color="grey", linestyle=":", label="start")
    axes.set(xlabel="policy lag, versions", ylabel="success after training", ylim=(0, 1.02))
    axes.set_xticks(range(len(lags)), [str(lag) for lag in lags])
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside right upper", frameon=False)
    figure.savefig(RESULTS / f"{NAME}.png", dpi=120)
    plt.close(figure)


if __name__ == "__main__":
    raise SystemExit(main())
