"""Which process gets which role."""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError

from accerl.config import RunConfig
from accerl.runtime.actors import InferenceActor, LearnerActor, ReplayActor, RolloutActor

HEALTH_WITHIN_S = 10.0


@dataclass
class Roles:
    """The actors of a run."""

    replay: list[Any]
    learner: Any
    inference: list[Any]
    rollout: list[Any]
    sockets: Path
    """Folder of the request sockets; only this user can enter it."""
    _readings: dict[str, dict[str, float]] = field(default_factory=dict)

    def named(self) -> Iterator[tuple[str, Any]]:
        for kind in ("replay", "inference", "rollout"):
            for index, actor in enumerate(getattr(self, kind)):
                yield f"{kind}-{index}", actor
        yield "learner", self.learner

    async def wait_until_ready(self) -> None:
        """Returns when every role has been constructed. Raises what a constructor raised."""
        await asyncio.gather(*(_health(actor) for _, actor in self.named()))

    async def health(self) -> dict[str, float]:
        """One flat reading of all roles: processor shares since the last one, queues, batching."""
        answers = await asyncio.gather(*(self._reading(name, actor) for name, actor in self.named()))
        shares: dict[str, list[float]] = {"replay": [], "inference": [], "rollout": [], "learner": []}
        totals: dict[str, float] = {}
        for name, now in answers:
            before = self._readings.get(name)
            if now is None:
                continue
            self._readings[name] = now
            kind = name.split("-")[0]
            if before is not None and now["time"] > before["time"] and now["cpu_s"] >= before["cpu_s"]:
                shares[kind].append((now["cpu_s"] - before["cpu_s"]) / (now["time"] - before["time"]))
                for key in ("progress", "batches", "wait_s"):
                    if key in now:
                        totals[f"{kind}.{key}"] = totals.get(f"{kind}.{key}", 0.0) + now[key] - before[key]
            for key in ("decisions", "unused", "discarded"):
                if key in now:
                    totals[f"{kind}.{key}"] = totals.get(f"{kind}.{key}", 0.0) + now[key]
        line = {f"{kind}_busy": sum(values) / len(values) for kind, values in shares.items() if values}
        line["replay_decisions"] = totals.get("replay.decisions", 0.0)
        line["replay_unused"] = totals.get("replay.unused", 0.0)
        line["discarded_decisions"] = totals.get("replay.discarded", 0.0)
        if totals.get("inference.batches"):
            line["batch_size_mean"] = totals["inference.progress"] / totals["inference.batches"]
            line["window_wait_ms"] = 1000 * totals["inference.wait_s"] / totals["inference.progress"]
        return line

    def kill(self) -> None:
        shutil.rmtree(self.sockets, ignore_errors=True)
        for _, actor in self.named():
            ray.kill(actor)

    @staticmethod
    async def _reading(name: str, actor: Any) -> tuple[str, dict[str, float] | None]:
        try:
            return name, await asyncio.wait_for(_health(actor), HEALTH_WITHIN_S)
        except (RayError, TimeoutError):
            return name, None


def place(config: RunConfig, start: Path) -> Roles:
    """Create every role's actor. Ray restarts their processes; `supervisor` starts their work again."""
    controller = ray.get_runtime_context().current_actor
    sockets = Path(tempfile.mkdtemp(prefix="accerl-", dir=os.environ.get("XDG_RUNTIME_DIR")))
    endpoint = f"ipc://{sockets}/inference"

    def remote(kind: type, name: str) -> Any:
        options = {"num_cpus": 0, "max_restarts": -1, "max_task_retries": 0, "name": f"{config.name}/{name}"}
        return ray.remote(kind).options(**options)

    replay = [remote(ReplayActor, f"replay-{index}").remote(config, index) for index in range(config.replay.num_shards)]
    learner = remote(LearnerActor, "learner").remote(config, start, replay, controller)
    inference = [remote(InferenceActor, "inference-0").remote(config, 0, endpoint, start, controller)]
    rollout = [
        remote(RolloutActor, f"rollout-{index}").remote(
            config, index, endpoint, replay[index % len(replay)], controller
        )
        for index in range(config.rollout.num_workers)
    ]
    return Roles(replay=replay, learner=learner, inference=inference, rollout=rollout, sockets=sockets)


async def _health(actor: Any) -> dict[str, float]:
    return await actor.health.remote()
