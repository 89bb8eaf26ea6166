"""Sums of the roles as one line of metrics."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from types import SimpleNamespace
from typing import Any

import pytest
from ray.exceptions import RayActorError

from accerl.config import RunConfig, merge
from accerl.runtime.readings import Readings

CONFIG = RunConfig(
    **merge({}, {"rollout.slots_per_worker": 4, "rollout.threads_per_worker": 2, "inference.batch_size": 4})
)


def actor(*readings: Mapping[str, float] | Exception) -> Any:
    """Gives these, one at each asking."""
    left: Iterator[Any] = iter(readings)

    async def health() -> Any:
        reading = next(left)
        if isinstance(reading, Exception):
            raise reading
        return reading

    return SimpleNamespace(health=SimpleNamespace(remote=health))


def lines(actors: dict[str, Any], num: int = 2) -> list[dict[str, float]]:
    readings = Readings(CONFIG)

    async def ask() -> list[dict[str, float]]:
        return [await readings.line(actors.items()) for _ in range(num)]

    return asyncio.run(ask())


def worker(time: float, env: float, credit: float, progress: float, cpu: float = 1.0) -> dict[str, float]:
    return {"time": time, "cpu_s": cpu, "span.env": env, "span.wait_credit": credit, "progress": progress}


def test_shares_are_those_of_all_threads_and_slots_of_a_role():
    first = actor(worker(10, 0, 0, 0), worker(20, 10, 20, 40))
    second = actor(worker(50, 5, 5, 5), worker(60, 15, 5, 45))
    _, line = lines({"rollout-0": first, "rollout-1": second})
    assert line["rollout_busy"] == pytest.approx((10 + 10) / (2 * 2 * 10))
    assert line["admission_wait_share"] == pytest.approx((20 + 0) / (2 * 4 * 10))
    assert line["env_s_per_decision"] == pytest.approx(20 / 80)
    assert line["num_workers"] == 2
    assert line["num_slots"] == 8


def test_a_process_that_was_restarted_counts_from_its_start():
    restarted = actor(worker(10, 500, 0, 900, cpu=80), worker(20, 4, 0, 8, cpu=2))
    _, line = lines({"rollout-0": restarted})
    assert line["rollout_busy"] == pytest.approx(4 / 20)
    assert line["env_s_per_decision"] == pytest.approx(0.5)


def test_a_role_that_does_not_answer_is_counted_and_left_out_of_the_shares():
    silent = actor(worker(10, 0, 0, 0), RayActorError())
    steady = actor(worker(10, 0, 0, 0), worker(20, 20, 0, 10))
    _, line = lines({"rollout-0": silent, "rollout-1": steady})
    assert line["num_workers"] == 2
    assert line["rollout_busy"] == pytest.approx(1.0)


def test_inference_and_learner():
    service = actor(
        {"time": 0, "cpu_s": 0, "progress": 0, "batches": 0, "wait_s": 0, "span.forward": 0},
        {"time": 10, "cpu_s": 1, "progress": 40, "batches": 5, "wait_s": 0.8, "span.forward": 6, "span.swap": 1},
    )
    learner = actor(
        {"time": 0, "cpu_s": 0, "progress": 0},
        {"time": 10, "cpu_s": 1, "progress": 20, "span.train": 6, "span.recompute": 2, "span.wait_data": 1},
    )
    _, line = lines({"inference-0": service, "learner-0": learner})
    assert line["inference_busy"] == pytest.approx(0.7)
    assert line["batch_size_mean"] == 8
    assert line["window_wait_ms"] == pytest.approx(20)
    assert line["forward_s_per_decision"] == pytest.approx(0.15)
    assert line["learner_busy"] == pytest.approx(0.8)
    assert line["data_wait_share"] == pytest.approx(0.1)
    assert line["train_s_per_decision"] == pytest.approx(0.4)


def test_what_the_shards_hold_is_added_up():
    shard = {"time": 0, "cpu_s": 0, "decisions": 7, "unused": 3, "lent": 2, "discarded": 0, "aged": 0, "refused": 1}
    first, _ = lines({"replay-0": actor(shard, shard), "replay-1": actor(shard, shard)})
    assert (first["replay_decisions"], first["replay_unused"], first["replay_lent"]) == (14, 6, 4)
    assert (first["discarded_decisions"], first["refused_trajectories"]) == (0, 2)
