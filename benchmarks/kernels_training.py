"""What the kernels of accerl_ext give the learner as a whole: decisions/s with `kernels = ext` over `kernels = torch`.

    python -m benchmarks.kernels_training

The learner of the quickstart (its recipe without warm-up, so that the policy changes at once; TinyVLA, 64 pixels, 512
decisions an update) on batches that are there, two learners from one seed by turns, an update each. One thread, and the
processor time of the process, which other processes on the machine do not lengthen; `kernels_over_torch` is the median
of the ratios of neighbours, `low` and `high` their quartiles. The two must have the same losses to 1e-3, or it fails.

Two minutes. Prints a table and, last, one line of JSON; appends to results/kernels_training.csv.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import statistics
import sys
import time
from pathlib import Path
from typing import Any, get_args

import torch

import accerl
from accerl import kernels
from accerl.config import KernelChoice, LearnerConfig, ObjectiveConfig, read_file
from accerl.learner import Learner
from accerl.packing import pack
from accerl.types import Batch
from benchmarks.recompute_ablation import CHUNK, IMAGE, episode, tiny_policy
from benchmarks.results_file import append, print_json, show

NAME = "kernels_training"
RECIPE = Path(accerl.__file__).parent / "recipes" / "quickstart.toml"
WAYS: tuple[KernelChoice, KernelChoice] = ("torch", "ext")
EPISODES = 58
"""Of 6 to 12 decisions: about as many as the recipe's batch has."""
TOLERANCE = 1e-3
LOGGED = ("policy_loss", "value_loss", "entropy", "grad_norm", "behaviour_kl")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--episodes", type=int, default=EPISODES, help="in a batch")
    parser.add_argument("--no-files", action="store_true", help="leave results/ as it is")
    options = parser.parse_args()
    assert set(WAYS) < set(get_args(KernelChoice))
    torch.set_num_threads(1)
    batches = [
        pack([episode(options.episodes * number + each, IMAGE) for each in range(options.episodes)], CHUNK)
        for number in range(2)
    ]
    recipe = read_file(RECIPE)
    learners = {way: Learner(*_parts(recipe)) for way in WAYS}
    for way in WAYS:
        update(way, learners[way], batches[0])
    rates: dict[str, list[float]] = {way: [] for way in WAYS}
    farthest = 0.0
    for number in range(options.rounds):
        order = WAYS if number % 2 == 0 else WAYS[::-1]
        batch, seen = batches[number % len(batches)], {}
        for way in order:
            began = time.process_time()
            seen[way] = update(way, learners[way], batch)
            rates[way].append(batch.num_decisions / (time.process_time() - began))
        farthest = max(farthest, *(abs(seen["ext"][name] - seen["torch"][name]) for name in LOGGED))
    ratios = [ours / theirs for ours, theirs in zip(rates["ext"], rates["torch"], strict=True)]
    low, middle, high = statistics.quantiles(ratios, n=4)
    rows = [
        {"kernels": way, "decisions_per_s": statistics.median(rates[way]), "rounds": options.rounds} for way in WAYS
    ]
    figures = {"kernels_over_torch": middle, "low": low, "high": high, "farthest_loss": farthest}
    show("decisions trained a second, one core", list(rows[0]), rows)
    if not options.no_files:
        append(NAME, [{**row, **figures} for row in rows])
    print_json(NAME, {**figures, "met": farthest < TOLERANCE, "rows": rows})
    return int(farthest >= TOLERANCE)


def update(way: KernelChoice, learner: Learner, batch: Batch) -> dict[str, float]:
    with contextlib.redirect_stdout(io.StringIO()):
        kernels.use(way)
    return learner.update(batch)


def _parts(recipe: dict[str, Any]) -> tuple[Any, LearnerConfig, ObjectiveConfig]:
    """One seed gives one policy."""
    learner = {**recipe["learner"], "warmup_updates": 0, "value_warmup_updates": 0}
    return tiny_policy(IMAGE), LearnerConfig(**learner), ObjectiveConfig(**recipe["objective"])


if __name__ == "__main__":
    sys.exit(main())
