"""What the roles say of themselves, summed up as one line of metrics."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from typing import Any

from ray.exceptions import RayError

from accerl.config import RunConfig

ANSWER_WITHIN_S = 10.0
AT_ONCE_S = 1.0
REPORT = "report."
"""Begins the names of what a role wants in the line as it is."""
Reading = Mapping[str, float]


class Readings:
    """Asks every role for its sums since its start; differences of two askings give shares and means."""

    def __init__(self, config: RunConfig):
        self._config = config
        self._before: dict[str, Reading] = {}

    async def line(self, actors: Iterable[tuple[str, Any]]) -> dict[str, float]:
        """Shares of the time since the last line, means over it, and what the queues hold now.

        Args:
            actors: name `KIND-NUMBER` and handle of each.
        """
        answers = dict(await asyncio.gather(*(_ask(name, actor) for name, actor in actors)))
        now = {name: reading for name, reading in answers.items() if reading is not None}
        changes = [
            (name.split("-")[0], _change(reading, self._before[name]))
            for name, reading in now.items()
            if name in self._before and reading["time"] > self._before[name]["time"]
        ]
        self._before = now
        return {**self._counts(answers), **self._held(now), **self._rates(changes), **_reported(now)}

    @staticmethod
    async def progress(actors: Iterable[tuple[str, Any]]) -> dict[str, float]:
        """What each has done since its process started, in units of its own; those that do not answer are missing."""
        answers = await asyncio.gather(*(_ask(name, actor, AT_ONCE_S) for name, actor in actors))
        return {name: reading["progress"] for name, reading in answers if reading is not None}

    def _counts(self, names: Iterable[str]) -> dict[str, float]:
        kinds = [name.split("-")[0] for name in names]
        rollout, inference = self._config.rollout, self._config.inference
        return {
            "num_workers": kinds.count("rollout"),
            "num_slots": kinds.count("rollout") * rollout.slots_per_worker,
            "threads_per_worker": rollout.threads_per_worker,
            "num_services": kinds.count("inference"),
            "num_shards": kinds.count("replay"),
            "num_learners": kinds.count("learner"),
            "batch_size": inference.batch_size,
            "inference_on_cpu": inference.device == "cpu",
            "learner_on_cpu": self._config.learner.device == "cpu",
        }

    def _held(self, now: Mapping[str, Reading]) -> dict[str, float]:
        """What lies in the replay."""
        shards = [reading for name, reading in now.items() if name.startswith("replay")]
        return {
            "replay_decisions": sum(shard["decisions"] for shard in shards),
            "replay_unused": sum(shard["unused"] for shard in shards),
            "replay_lent": sum(shard["lent"] for shard in shards),
            "discarded_decisions": sum(shard["discarded"] for shard in shards),
            "aged_decisions": sum(shard["aged"] for shard in shards),
            "refused_trajectories": sum(shard["refused"] for shard in shards),
        }

    def _rates(self, changes: list[tuple[str, dict[str, float]]]) -> dict[str, float]:
        rollout, inference, learner = (
            _total(change for name, change in changes if name == kind) for kind in ("rollout", "inference", "learner")
        )
        line: dict[str, float] = {}
        if rollout:
            threads, slots = self._config.rollout.threads_per_worker, self._config.rollout.slots_per_worker
            line["rollout_busy"] = rollout.get("span.env", 0.0) / (rollout["time"] * threads)
            line["admission_wait_share"] = rollout.get("span.wait_credit", 0.0) / (rollout["time"] * slots)
            if rollout["progress"] > 0:
                line["env_s_per_decision"] = rollout.get("span.env", 0.0) / rollout["progress"]
        if inference:
            forward = inference.get("span.forward", 0.0)
            line["inference_busy"] = (forward + inference.get("span.swap", 0.0)) / inference["time"]
            if inference["progress"] > 0:
                line["forward_s_per_decision"] = forward / inference["progress"]
                line["batch_size_mean"] = inference["progress"] / max(1.0, inference["batches"])
                line["window_wait_ms"] = 1000 * inference["wait_s"] / inference["progress"]
        if learner:
            trained = learner.get("span.train", 0.0) + learner.get("span.recompute", 0.0)
            line["learner_busy"] = trained / learner["time"]
            line["data_wait_share"] = learner.get("span.wait_data", 0.0) / learner["time"]
            line["publish_share"] = learner.get("span.publish", 0.0) / learner["time"]
            if learner["progress"] > 0:
                line["train_s_per_decision"] = trained / learner["progress"]
        return line


def _reported(now: Mapping[str, Reading]) -> dict[str, float]:
    """What roles want in the line as it is."""
    return {
        name.removeprefix(REPORT): value
        for reading in now.values()
        for name, value in reading.items()
        if name.startswith(REPORT)
    }


def _change(now: Reading, before: Reading) -> dict[str, float]:
    """Growth since the reading before; since the start for a process that was restarted in between."""
    restarted = now["cpu_s"] < before["cpu_s"]
    change = {key: value - (0.0 if restarted else before.get(key, 0.0)) for key, value in now.items()}
    return {**change, "time": now["time"] - before["time"]}


def _total(changes: Iterable[dict[str, float]]) -> dict[str, float]:
    """Sums over the processes of a role, the time included."""
    total: dict[str, float] = {}
    for change in changes:
        for key, value in change.items():
            total[key] = total.get(key, 0.0) + value
    return total


async def _ask(name: str, actor: Any, within_s: float = ANSWER_WITHIN_S) -> tuple[str, Reading | None]:
    try:
        return name, await asyncio.wait_for(_health(actor), within_s)
    except (RayError, TimeoutError):
        return name, None


async def _health(actor: Any) -> Reading:
    return await actor.health.remote()
