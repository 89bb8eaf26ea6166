"""The runtime's own costs, read off measured runs, for the simulation of larger ones."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from accerl.admission import Admission
from accerl.runtime.dispatcher import Dispatcher
from accerl.tasks import TaskSampler
from benchmarks.costs import Costs
from benchmarks.experiment import Experiment, mean_episode
from benchmarks.measurement import Measurement

MIN_RUNS = 3
"""From which on a constant share of each process is told from what its work takes."""


def fit_costs(measured: Sequence[Measurement]) -> Costs:
    """Processor time of each kind of process, a decision; and of waking slots that wait for credits."""
    episode = mean_episode(measured[0].experiment.emulation)
    by_kind = {kind: seconds_per_decision(measured, kind) for kind in measured[0].work_s}
    return Costs(
        worker_s=by_kind["rollout"],
        service_s=by_kind["inference"],
        controller_s=by_kind["controller"] * episode.num_decisions,
        wake_s=wake_s(),
        replay_s=by_kind["replay"],
        sample_s=by_kind["learner"],
    )


def seconds_per_decision(measured: Sequence[Measurement], kind: str) -> float:
    """Least squares of the processor time a second on processes and decisions/s, so that what a process does at
    regular times (heartbeats, traces, lines of metrics) does not count as work.
    """
    rates = np.array([each.collected_per_s for each in measured])
    shares = rates * [each.work_s[kind] for each in measured]
    if len(measured) < MIN_RUNS:
        return float(shares.sum() / rates.sum())
    processes = [num_processes(each.experiment, kind) for each in measured]
    (_, slope), *_ = np.linalg.lstsq(np.stack([processes, rates], axis=1), shares, rcond=None)
    return max(0.0, float(slope))


def num_processes(experiment: Experiment, kind: str) -> int:
    config = experiment.config(Path("nowhere/run"))
    counts = {
        "rollout": config.rollout.num_workers,
        "inference": config.inference.num_services,
        "replay": config.replay.num_shards,
    }
    return counts.get(kind, 1)


def wake_s(num_waiting: int = 400, num_events: int = 100) -> float:
    """Processor time of the controller for each slot that waits for a credit, at each event."""
    config = Experiment(mode="async", inference_gpus=2).config(Path("nowhere/run"))

    async def wait_and_wake(num: int) -> float:
        dispatcher = Dispatcher(Admission(config, TaskSampler(config.env.tasks, config.tasks, config.seed)))
        dispatcher.admission.serve("inference-0", 0)
        while dispatcher.admission.start("rollout-0") is not None:
            pass  # until no credit is left
        waiting = [asyncio.create_task(dispatcher.next_episode("rollout-0")) for _ in range(num)]
        await _settle()
        started = time.process_time()
        for event in range(num_events):
            await dispatcher.deliver(0, event)
            await _settle()
        elapsed = time.process_time() - started
        for task in waiting:
            task.cancel()
        return elapsed / num_events

    few, many = asyncio.run(wait_and_wake(0)), asyncio.run(wait_and_wake(num_waiting))
    return max(0.0, (many - few) / num_waiting)


async def _settle() -> None:
    """Until all tasks that were woken wait again."""
    for _ in range(3):
        await asyncio.sleep(0)
