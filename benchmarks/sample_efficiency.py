"""How many real decisions does imagination save? Real decisions to the same success, without it and with it.

    python -m benchmarks.sample_efficiency --processes 2

The quickstart's job (four Meta-World tasks from pixels) in one process and in lockstep, from one cloned policy, for
several seeds. Model-free: `real` collects half as many decisions as it trains on, about what the quickstart does, and
`reused` trains on each eight times. With imagination, and 3 real decisions an update: `oracle` has the simulator itself
in the models' place, which is what a perfect world model could give, from the moments it has seen; `model` has one that
learned from offline demonstrations alone, starts from those of the clone as well, and goes on learning from the real
decisions as they come. All train on batches of the same size, as often and with the same settings. What the evaluations
play is not counted: nothing is learned from it.

`decisions_to_target` is where the success of the sampled policy, between two evaluations linearly, first reaches
`--target` and is there at the next evaluation too. `ratio_oracle` and `ratio_model` are quotients of geometric means
over the seeds, against the better of the model-free arms; intervals from a bootstrap over seeds (95 %), each arm's for
itself. An arm that did not get there in every seed has no ratio, and the table says how often it did.

A run is a row of results/sample_efficiency.csv as soon as it is done, and is not run again. About four minutes of one
core a run, eight for the simulator's arms. Prints a table and, last, one line of JSON; draws
results/sample_efficiency.png.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from benchmarks.imagined_runs import MODEL_FREE, REAL_PER_UPDATE, START, play, prepare
from benchmarks.results_file import RESULTS, print_json, show
from benchmarks.sweep import sweep

NAME = "sample_efficiency"
ARMS = ("real", "reused", "oracle", "model")
KEY = ("arm", "seed", "share", "horizon", "threshold", "learns", "updates", "real_per_update", "world_model")
"""What makes two runs the same."""
BAR = 10


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--updates", type=int, default=60)
    parser.add_argument("--share", type=float, default=0.98, help="of a batch that is imagined")
    parser.add_argument("--horizon", type=int, default=8, help="decisions of an imagined episode")
    parser.add_argument("--learns", type=float, default=2.0, help="updates of either model for a real decision")
    parser.add_argument("--threshold", type=float, default=0.7, help="probability that is success, for `model`")
    parser.add_argument("--world-model", type=Path, default=Path("quickstart"), help="of the arm `model`")
    parser.add_argument("--target", type=float, default=0.75, help="success")
    parser.add_argument("--processes", type=int, default=1)
    options = parser.parse_args()
    prepare(START)
    wanted = [wanted_run(arm, seed, options) for seed in options.seeds for arm in options.arms]
    report(sweep(NAME, KEY, wanted, play, options.processes), options.target)
    return 0


def wanted_run(arm: str, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    imagines = arm not in MODEL_FREE
    return {
        "arm": arm,
        "seed": seed,
        "share": options.share if imagines else 0.0,
        "horizon": options.horizon if imagines else 0,
        "threshold": options.threshold if arm == "model" else 0.0,
        "learns": options.learns if arm == "model" else 0.0,
        "updates": options.updates,
        "real_per_update": REAL_PER_UPDATE[arm],
        "world_model": str(options.world_model) if arm == "model" else "",
    }


def decisions_to(curve: Sequence[Sequence[float]], target: float) -> float | None:
    """Real decisions until the success reaches `target`, to stay for an evaluation more; None: it never does."""
    for before, point, after in zip([None, *curve[:-1]], curve, [*curve[1:], curve[-1]], strict=True):
        if point[2] >= target and after[2] >= target:
            if before is None or before[2] >= target:
                return float(point[1])
            share = (target - before[2]) / (point[2] - before[2])
            return float(before[1] + share * (point[1] - before[1]))
    return None


def report(rows: Sequence[dict[str, str]], target: float) -> None:
    """Table, picture and JSON of the runs that are there."""
    found: dict[str, list[float | None]] = {}
    table = []
    for arm in dict.fromkeys(row["arm"] for row in rows):
        curves = [json.loads(row["curve"]) for row in rows if row["arm"] == arm]
        found[arm] = [decisions_to(curve, target) for curve in curves]
        table.append(
            {
                "arm": arm,
                "runs": len(curves),
                "start": float(np.mean([curve[0][2] for curve in curves])),
                "end": float(np.mean([curve[-1][2] for curve in curves])),
                "best": float(np.mean([max(point[2] for point in curve) for curve in curves])),
                "decisions": float(np.mean([curve[-1][1] for curve in curves])),
                "reached": sum(each is not None for each in found[arm]),
                "decisions_to_target": geometric_mean(found[arm]),
            }
        )
    show(f"real decisions to a success of {target}", list(table[0]), table)
    draw(rows, target)
    reached = {arm: mean for arm in MODEL_FREE if (mean := geometric_mean(found.get(arm, [])))}
    base = min(reached, key=lambda arm: reached[arm], default=MODEL_FREE[0])
    ratios = {f"ratio_{arm}": ratio(found, base, arm) for arm in ("oracle", "model")}
    intervals = {f"{name}_interval": interval(found, base, name.removeprefix("ratio_")) for name in ratios}
    met = (ratios["ratio_model"] or 0) >= BAR
    print_json(NAME, {"target": target, "against": base, **ratios, **intervals, "met": met, "rows": table})


def geometric_mean(values: Sequence[float | None]) -> float | None:
    if not values or any(value is None for value in values):
        return None
    return float(np.exp(np.mean(np.log([max(1.0, value) for value in values if value is not None]))))


def ratio(found: dict[str, list[float | None]], base: str, arm: str) -> float | None:
    real, imagined = geometric_mean(found.get(base, [])), geometric_mean(found.get(arm, []))
    return None if real is None or imagined is None else real / imagined


def interval(
    found: dict[str, list[float | None]], base: str, arm: str, draws: int = 2000
) -> tuple[float, float] | None:
    if ratio(found, base, arm) is None:
        return None
    random = np.random.default_rng(0)

    def drawn(values: list[Any]) -> float:
        return float(np.log(np.maximum(1.0, random.choice(values, len(values)))).mean())

    logs = [drawn(found[base]) - drawn(found[arm]) for _ in range(draws)]
    low, high = np.exp(np.percentile(logs, [2.5, 97.5]))
    return float(low), float(high)


def draw(rows: Sequence[dict[str, str]], target: float) -> None:
    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    colours: dict[str, str] = dict(zip(ARMS, ("#0072B2", "#56B4E9", "#009E73", "#D55E00"), strict=True))
    for row in rows:
        curve = np.array(json.loads(row["curve"]))
        first = row["arm"] not in axes.get_legend_handles_labels()[1]
        label = row["arm"] if first else None
        axes.plot(np.maximum(curve[:, 1], 32), curve[:, 2], color=colours[row["arm"]], label=label, marker=".")
    axes.axhline(target, color="grey", linewidth=0.8, linestyle=":")
    axes.set(xscale="log", xlabel="real decisions", ylabel="success, sampled", ylim=(0, 1))
    axes.legend(frameon=False)
    figure.savefig(RESULTS / f"{NAME}.png", dpi=120)
    plt.close(figure)


if __name__ == "__main__":
    sys.exit(main())
