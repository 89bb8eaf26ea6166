"""Does the gate keep a policy from learning what is not so? Training with world models that are broken on purpose.

    python -m benchmarks.broken_world_model --processes 2

The job and the settings of `benchmarks.sample_efficiency`, with its world model spoiled and not learning:
`constant_reward` finds success everywhere, `shuffled_actions` predicts what another imagination's actions would lead
to. Each real episode is imagined again from its own actions, before anything else; `closed_after` is the update at
which nothing imagined was trained on any more. From there on the run is model-free. `reused` is model-free from the
start, with as many updates: rows of results/sample_efficiency.csv, which that benchmark leaves. A row of
results/broken_world_model.csv a run, not run again; about eight minutes of one core each. Prints a table and, last, one
line of JSON.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from accerl.config import RunConfig
from accerl_wm.carriers import Frames
from accerl_wm.protocols import ObservationModel
from accerl_wm.world import WorldModel
from benchmarks.imagined_runs import START, play, prepare, world_of
from benchmarks.results_file import print_json, show
from benchmarks.sweep import read, sweep

NAME = "broken_world_model"
ARMS = ("constant_reward", "shuffled_actions")
MODEL_FREE = "reused"
KEY = ("arm", "seed", "share", "horizon", "threshold", "learns", "updates", "real_per_update", "world_model")
BAR = 0.05


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    parser.add_argument("--updates", type=int, default=60)
    parser.add_argument("--world-model", default="quickstart")
    parser.add_argument("--processes", type=int, default=1)
    options = parser.parse_args()
    prepare(START)
    wanted = [wanted_run(arm, seed, options) for seed in options.seeds for arm in ARMS]
    model_free = [
        row
        for row in read("sample_efficiency")
        if row["arm"] == MODEL_FREE and row["updates"] == str(options.updates) and int(row["seed"]) in options.seeds
    ]
    report([*model_free, *sweep(NAME, KEY, wanted, play_broken, options.processes)])
    return 0


def wanted_run(arm: str, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    return {
        "arm": arm,
        "seed": seed,
        "share": 0.9,
        "horizon": 8,
        "threshold": 0.7,
        "learns": 0.0,
        "updates": options.updates,
        "real_per_update": 13,
        "world_model": options.world_model,
    }


def play_broken(run: dict[str, Any]) -> dict[str, Any]:
    return play(run, broken_world)


def broken_world(run: dict[str, Any], config: RunConfig) -> WorldModel:
    """The world model of a run, spoiled as its arm says."""
    world = world_of(run, config)
    if run["arm"] == "constant_reward":
        return WorldModel(world.observation, Always(), world.device)
    return WorldModel(Shuffled(world.observation), world.reward, world.device)


class Always:
    """Success, whatever is seen."""

    def predict(self, frames: Frames, instructions: Sequence[str]) -> Tensor:
        return torch.full((len(instructions),), 0.95)


class Shuffled:
    """What comes of the actions of the next row; alone, of the opposite ones."""

    def __init__(self, model: ObservationModel):
        self._model = model

    @property
    def history(self) -> int:
        return self._model.history

    def predict(self, past: Frames, actions: Tensor) -> Frames:
        return self._model.predict(past, actions.roll(1, 0) if len(actions) > 1 else -actions)


def report(rows: Sequence[dict[str, str]]) -> None:
    """Table and JSON of the runs that are there."""
    table = []
    for arm in dict.fromkeys(row["arm"] for row in rows):
        runs = [row for row in rows if row["arm"] == arm]
        shares = [json.loads(row.get("shares") or "[]") for row in runs]
        closed = [after for each in shares if (after := closed_after(each)) is not None]
        table.append(
            {
                "arm": arm,
                "runs": len(runs),
                "start": float(np.mean([json.loads(row["curve"])[0][2] for row in runs])),
                "end": float(np.mean([float(row["success"]) for row in runs])),
                "decisions": float(np.mean([float(row["decisions"]) for row in runs])),
                "closed": len(closed),
                "closed_after": max(closed, default=None),
            }
        )
    show("training with a broken world model", list(table[0]), table)
    end = {row["arm"]: row["end"] for row in table}
    worse = {f"worse_{arm}": end[MODEL_FREE] - end[arm] for arm in ARMS if {arm, MODEL_FREE} <= end.keys()}
    print_json(NAME, {**worse, "met": max(worse.values(), default=1.0) <= BAR, "rows": table})


def closed_after(shares: Sequence[Sequence[float]]) -> int | None:
    """The update at which the share became 0 for good; None: it never did."""
    return int(shares[-1][0]) if shares and shares[-1][1] == 0 else None


if __name__ == "__main__":
    sys.exit(main())
