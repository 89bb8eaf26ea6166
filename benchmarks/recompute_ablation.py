"""What do recomputed values and global normalisation give, and what do they cost?

    python -m benchmarks.recompute_ablation --processes 2

Two parts.

Return: the learning problem of `benchmarks.state_study` with the acting policy 16 versions behind, for each way of
recomputing the values and with advantages normalised over the global batch or over each of its four micro-batches:
interquartile mean of the success over seeds and tasks, with a 95 % bootstrap interval. The parts of a batch are 32
decisions in every run. Each run is a row of results/recompute_ablation.csv as soon as it is done, and not run again.

Speed: learner and prefetcher of the quickstart (TinyVLA, 64 pixels) on trajectories that are there, on one core: a
device that is busy, so that a pass in the background is not free. Decisions trained for each second of the process's
processor time, which other processes do not lengthen; the ways by turns, medians over the rounds; `over_prefetch` is
that of the ratios within a round.

About a minute a run of the first part, 30 in all, and two minutes for the second. Prints two tables and, last, one line
of JSON.
"""

from __future__ import annotations

import argparse
import json
import operator
import os
import statistics
import time
from collections.abc import Sequence
from typing import Any, get_args

import numpy as np
import torch

from accerl.config import LearnerConfig, ObjectiveConfig
from accerl.learner import Learner
from accerl.packing import pack
from accerl.policies.tiny_vla import TinyVLA, TinyVLAConfig
from accerl.prefetch import Prefetcher
from accerl.types import Batch, BatchRule, Trajectory
from benchmarks.interquartile import bootstrap_interval, interquartile_mean
from benchmarks.results_file import append, print_json, show
from benchmarks.sweep import sweep

NAME = "recompute_ablation"
WAYS = get_args(LearnerConfig.model_fields["recompute"].annotation)
NORMALIZATIONS = ("global", "local")
KEY = ("recompute", "normalization", "seed", "lag", "num_decisions")
CHUNK, ACTION_DIM, IMAGE, PROPRIO, EPISODE = 4, 4, 64, 4, 12
INSTRUCTION = "press the button"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3, 4])
    parser.add_argument("--lag", type=int, default=16)
    parser.add_argument("--num-decisions", type=int, default=8000)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=9, help="of the second part")
    parser.add_argument("--updates", type=int, default=3, help="in a round")
    options = parser.parse_args()
    speed = measure_speed(options.rounds, options.updates)
    show("decisions trained a second, one core", list(speed[0]), speed)
    append(f"{NAME}_speed", speed)
    wanted: list[dict[str, Any]] = [
        dict(zip(KEY, (way, normalization, seed, options.lag, options.num_decisions), strict=True))
        for seed in options.seeds
        for way in WAYS
        for normalization in NORMALIZATIONS
    ]
    table = summarize(sweep(NAME, KEY, wanted, play, options.processes))
    show(f"interquartile mean of the success, policy lag {options.lag}", list(table[0]), table)
    ratio = next(row["over_prefetch"] for row in speed if row["recompute"] == "fused")
    print_json(NAME, {"fused_over_prefetch": ratio, "met": ratio >= 1.25, "speed": speed, "success": table})
    return 0


def play(run: dict[str, Any]) -> dict[str, Any]:
    """One run of the first part, as a row of the results."""
    from benchmarks import state_study

    outcome = state_study.train(
        state_study.Setting(
            objective={"normalization": run["normalization"]},
            learner={"recompute": run["recompute"], "micro_batch_decisions": 32},
            lag=run["lag"],
            seed=run["seed"],
            num_decisions=run["num_decisions"],
        )
    )
    return {
        **run,
        "success": float(np.mean(outcome.rates)),
        "rates": json.dumps(outcome.rates),
        "curve": json.dumps([round(value, 3) for value in outcome.curve]),
        "explained_variance": state_study.late_mean(outcome.updates, "explained_variance"),
        "wall_s": outcome.wall_s,
    }


def summarize(rows: Sequence[dict[str, str]]) -> list[dict[str, Any]]:
    """A row for each way and normalisation, over the seeds."""
    table = []
    for way in WAYS:
        for normalization in NORMALIZATIONS:
            runs = [row for row in rows if (row["recompute"], row["normalization"]) == (way, normalization)]
            scores = np.array([json.loads(row["rates"]) for row in runs])
            low, high = bootstrap_interval(scores)
            explained = float(np.mean([float(row["explained_variance"]) for row in runs]))
            found = {"success": interquartile_mean(scores), "low": low, "high": high, "explained_variance": explained}
            table.append({"recompute": way, "normalization": normalization, "runs": len(runs), **found})
    return table


def measure_speed(rounds: int, updates: int, image_size: int = IMAGE) -> list[dict[str, Any]]:
    """Decisions trained for each second of one core, of each way of recomputing."""
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(allowed)})
    torch.set_num_threads(1)
    try:
        source = Stored(image_size)
        rates: dict[str, list[float]] = {way: [] for way in WAYS}
        for _ in range(rounds):
            for way in WAYS:
                rates[way].append(train_from(source, way, updates, image_size))
    finally:
        os.sched_setaffinity(0, allowed)
    return [
        {
            "recompute": way,
            "decisions_per_s": statistics.median(found),
            "over_prefetch": statistics.median(map(operator.truediv, found, rates["prefetch"])),
            "rounds": rounds,
        }
        for way, found in rates.items()
    ]


def train_from(source: Stored, way: Any, updates: int, image_size: int) -> float:
    """For each second of the process, after an update that only makes the statistics `fused` lags behind."""
    config = LearnerConfig(recompute=way, batch_decisions=256, micro_batch_decisions=128)
    learner = Learner(tiny_policy(image_size), config, ObjectiveConfig())

    def make(trajectories: Sequence[Trajectory]) -> Batch:
        return learner.revalued(pack(trajectories, CHUNK))

    prefetcher = Prefetcher(source, make, config)
    try:
        started = trained = 0.0
        while learner.updates <= updates:
            micro = prefetcher.get(timeout_s=60)
            assert micro is not None, "there is always something"
            if micro.batch is not None:
                learner.accumulate(micro.batch)
                trained += micro.batch.num_decisions
            if micro.is_last:
                learner.step()
                if learner.updates == 1:
                    started, trained = time.process_time(), 0.0
        return trained / (time.process_time() - started)
    finally:
        prefetcher.close()


class Stored:
    """A `TrajectorySource` with whole episodes, always enough."""

    def __init__(self, image_size: int):
        self._episodes = [episode(number, image_size) for number in range(64)]
        self._next = 0

    def rule(self, batch: int, timeout_s: float) -> BatchRule:
        return BatchRule()

    def sample(self, num_decisions: int, batch: int, timeout_s: float) -> Sequence[Trajectory]:
        chosen: list[Trajectory] = []
        while sum(each.num_decisions for each in chosen) < num_decisions:
            chosen.append(self._episodes[self._next % len(self._episodes)])
            self._next += 1
        return chosen

    def take(self, num_decisions: int, rule: BatchRule, batch: int, timeout_s: float) -> Sequence[Trajectory]:
        return self.sample(num_decisions, batch, timeout_s)

    def confirm(self, batch: int) -> None:
        """Nothing is lent."""


def episode(number: int, image_size: int) -> Trajectory:
    generator = np.random.default_rng(number)
    size = int(generator.integers(EPISODE // 2, EPISODE + 1))
    reward = np.zeros(size, np.float32)
    reward[-1] = number % 2
    return Trajectory(
        task="press",
        instruction=INSTRUCTION,
        images=generator.integers(0, 256, (size + 1, 1, image_size, image_size, 3), dtype=np.uint8),
        proprio=generator.normal(size=(size + 1, PROPRIO)).astype(np.float32),
        episode_step=np.arange(size + 1, dtype=np.int32),
        blob={"tokens": generator.integers(0, 256, (size, CHUNK * ACTION_DIM)).astype(np.int16)},
        log_prob=np.full((size, CHUNK * ACTION_DIM), -5.5, np.float32),
        value=np.full(size, 0.5, np.float32),
        reward=reward,
        num_actions=np.full(size, CHUNK, np.int32),
        num_env_steps=np.full(size, CHUNK, np.int32),
        policy_version=np.zeros(size, np.int32),
        terminal=True,
        truncated=False,
        success=bool(reward[-1]),
        origin="benchmark",
    )


def tiny_policy(image_size: int) -> TinyVLA:
    torch.manual_seed(0)
    return TinyVLA(
        TinyVLAConfig(
            image_size=image_size,
            num_cameras=1,
            proprio_dim=PROPRIO,
            action_dim=ACTION_DIM,
            chunk_length=CHUNK,
            max_decisions=EPISODE,
            vocabulary=tuple(sorted(set(INSTRUCTION.split()))),
        )
    )


if __name__ == "__main__":
    raise SystemExit(main())
