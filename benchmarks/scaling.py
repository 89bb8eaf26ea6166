"""From 1 to 256 emulated GPUs: measured as far as processes fit, simulated beyond, and what gives way first.

    python benchmarks/scaling.py

Weak scaling of the work of `benchmarks.pipeline`: 6 environments and 1/8 of that global batch a GPU; each mode divides
its GPUs as is best for 8 of them. Three parts:

1. Measured: the real runtime at the sizes of --measure. Times are scaled so that about 100 decisions/s pass, which two
   cores carry; figures are given per second of the emulated time.
2. The simulation of the same runs, with the processor time that each kind of process was measured to take a decision,
   and its relative error in decisions/s.
3. The simulation at the sizes of --simulate, as on nodes of 8 GPUs: the same processor times; workers, services and
   replay shards grow with the GPUs; one learner process, one controller and the network of one node do not. An update
   sends 15 GB of weights: 0.26 s a GiB into and out of Ray's object store (measured on two cores)
   and a hop over 400 Gb/s for each doubling of the nodes that have them.

About 40 minutes. The last line: the mean and the largest error of the simulation, speed-up of 64 GPUs and efficiency of
256 over 1 for `async`, and the shared part that first takes all of its time, with the size at which it does.
"""

from __future__ import annotations

import argparse
import math
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import numpy as np

from accerl.config import Mode
from benchmarks import figures, results_file
from benchmarks.calibration import fit_costs
from benchmarks.costs import Costs
from benchmarks.devices import Emulation
from benchmarks.experiment import Experiment
from benchmarks.measurement import Measurement, measure, simulate
from benchmarks.pipeline import best_setting

ENVS_PER_GPU = 6
GPUS_PER_NODE = 8
WEIGHTS_GIB = 13.8
"""7.385 billion parameters in bfloat16."""
STORE_S_PER_GIB = 0.26
SHARED = ("sample path", "controller", "network in", "network out")
"""Stations of which there is one, whatever the size."""
SATURATED = 0.95
COLUMNS = ("mode", "gpus", "envs", "time_scale", "measured", "simulated", "error", "lag_mean", "lag_max", "cores")
PROJECTED = (
    "mode",
    "gpus",
    "envs",
    "decisions_per_s",
    "speedup",
    "efficiency",
    "gpu_idle",
    "lag_mean",
    "busiest",
    "busy",
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--modes", nargs="+", choices=get_args(Mode), default=list(get_args(Mode)))
    parser.add_argument("--measure", type=int, nargs="+", default=[1, 2, 4, 8, 16])
    parser.add_argument("--simulate", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32, 64, 128, 256])
    parser.add_argument("--seconds", type=float, default=30.0, help="of measuring, each run, after the first updates")
    parser.add_argument("--max-policy-lag", type=int, default=3, help="K of async")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--root", type=Path, default=Path("runs/scaling"), help="folder for the runs")
    parser.add_argument("--no-files", action="store_true", help="leave results/ as it is")
    arguments = parser.parse_args()
    patterns = {mode: best_setting(first_experiment(mode, arguments)).experiment for mode in arguments.modes}
    measured = [
        measure(sized(patterns[mode], gpus, time_scale(gpus)), arguments.root / f"{mode}-{gpus}", arguments.seconds)
        for gpus in arguments.measure
        for mode in arguments.modes
    ]
    costs = fit_costs(measured)
    with tempfile.TemporaryDirectory() as folder:
        simulated = [simulate(each.experiment, Path(folder), costs, each.seconds) for each in measured]
        compared = comparison(measured, simulated)
        results_file.show("simulated against measured, decisions a second", COLUMNS, compared)
        grown = [
            simulate(spread(sized(pattern, gpus)), Path(folder), cluster_costs(costs, gpus))
            for pattern in patterns.values()
            for gpus in arguments.simulate
        ]
    projected = projection(grown)
    results_file.show("simulated on nodes of 8 GPUs", PROJECTED, projected)
    if not arguments.no_files:
        path = results_file.append("scaling", [*compared, *projected])
        figures.scaling(measured, grown, SHARED, path.with_suffix(".png"))
    results_file.print_json("scaling", summary(compared, projected, costs))
    return 0


def first_experiment(mode: Mode, arguments: argparse.Namespace) -> Experiment:
    """On one node."""
    return Experiment(
        mode=mode,
        num_gpus=GPUS_PER_NODE,
        num_envs=ENVS_PER_GPU * GPUS_PER_NODE,
        max_policy_lag=arguments.max_policy_lag,
        seed=arguments.seed,
    )


def sized(pattern: Experiment, gpus: int, scale: float = 1.0) -> Experiment:
    """The same division of so many GPUs, and so much more or less work."""
    factor = gpus / pattern.num_gpus
    changes = {
        "num_gpus": gpus,
        "num_envs": ENVS_PER_GPU * gpus,
        "inference_gpus": None if pattern.inference_gpus is None else pattern.inference_gpus * factor,
        "num_services": max(1, round(pattern.num_services * min(1.0, factor))),
        "emulation": Emulation(**{**pattern.emulation.model_dump(), "time_scale": scale}),
    }
    return Experiment(**{**dict(pattern), **changes})


def spread(experiment: Experiment) -> Experiment:
    """As many workers, services and shards as belong to so many nodes."""
    nodes = max(1, math.ceil(experiment.num_gpus / GPUS_PER_NODE))
    changes = {"max_workers": 10_000, "num_services": experiment.num_services * nodes, "num_shards": nodes}
    return Experiment(**{**dict(experiment), **changes})


def time_scale(gpus: int) -> float:
    """At which about 100 decisions/s pass."""
    return max(0.25, gpus / GPUS_PER_NODE)


def cluster_costs(costs: Costs, gpus: int) -> Costs:
    """With the time that 15 GB of weights take to all nodes."""
    nodes = max(1, math.ceil(gpus / GPUS_PER_NODE))
    hop_s = WEIGHTS_GIB * 2**30 / costs.network_bytes_per_s
    weights_s = WEIGHTS_GIB * STORE_S_PER_GIB + hop_s * math.ceil(math.log2(nodes + 1) if nodes > 1 else 0)
    return Costs(**{**costs.model_dump(), "weights_s": weights_s})


def comparison(measured: Sequence[Measurement], simulated: Sequence[Measurement]) -> list[dict[str, Any]]:
    """One row for each run; decisions a second of the emulated time."""
    rows = []
    for real, model in zip(measured, simulated, strict=True):
        scale = real.experiment.emulation.time_scale
        rows.append(
            {
                **_row(real, "measured"),
                "measured": real.decisions_per_s * scale,
                "simulated": model.decisions_per_s * scale,
                "error": model.decisions_per_s / real.decisions_per_s - 1,
                "cores": sum(real.work_s.values()) * real.decisions_per_s,
            }
        )
    return rows


def projection(grown: Sequence[Measurement]) -> list[dict[str, Any]]:
    """One row for each simulated size, beside the smallest of its mode."""
    rows = []
    for each in grown:
        first = min(
            (other for other in grown if other.experiment.mode == each.experiment.mode),
            key=lambda other: other.experiment.num_gpus,
        )
        busiest = max(each.work_s, key=lambda station: each.work_s[station])
        speedup = each.decisions_per_s / first.decisions_per_s
        rows.append(
            {
                **_row(each, "simulated"),
                "speedup": speedup,
                "efficiency": speedup * first.experiment.num_gpus / each.experiment.num_gpus,
                "busiest": busiest,
                "busy": each.work_s[busiest],
            }
        )
    return rows


def summary(compared: Sequence[dict[str, Any]], projected: Sequence[dict[str, Any]], costs: Costs) -> dict[str, Any]:
    """The last line."""
    errors = [abs(row["error"]) for row in compared]
    free = {row["gpus"]: row for row in projected if row["mode"] == "async"}
    full = [row for _, row in sorted(free.items()) if row["busy"] >= SATURATED]
    line = {
        "simulation_error": float(np.mean(errors)) if errors else None,
        "simulation_error_max": max(errors, default=None),
        "saturates_first": full[0]["busiest"] if full else None,
        "saturates_at_gpus": full[0]["gpus"] if full else None,
        "speedup_64": free[64]["speedup"] if 64 in free else None,
        "efficiency_256": free[256]["efficiency"] if 256 in free else None,
        "costs": costs.model_dump(),
    }
    lockstep = {row["gpus"]: row["decisions_per_s"] for row in projected if row["mode"] == "sync"}
    both = sorted(free.keys() & lockstep.keys())
    return line | {"async_over_sync": {gpus: free[gpus]["decisions_per_s"] / lockstep[gpus] for gpus in both}}


def _row(each: Measurement, source: str) -> dict[str, Any]:
    """All columns, in the order of the file."""
    row = each.row()
    kept = ("mode", "gpus", "inference_gpus", "services", "envs", "time_scale", "seed", "seconds", "updates")
    figures_of_run = ("decisions_per_s", "gpu_idle", "lag_mean", "lag_max", "discarded_decisions")
    empty = dict.fromkeys(("measured", "simulated", "error", "cores", "speedup", "efficiency", "busiest", "busy"))
    return {"source": source, **{key: row[key] for key in (*kept, *figures_of_run)}, **empty}


if __name__ == "__main__":
    sys.exit(main())
