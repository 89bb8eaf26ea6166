"""The ports between roles over Ray: each a few lines around a remote call."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Sequence
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, ObjectLostError, RayActorError

from accerl.types import Episode, EpisodePlan, Trajectory, Weights

RETRY_AFTER_S = 0.5


class RaySink:
    """rollout -> replay. A trajectory is kept and sent again while its shard is being restarted."""

    def __init__(self, shard: Any):
        self._shard = shard

    async def put(self, trajectory: Trajectory) -> None:
        while True:
            try:
                await self._shard.push.remote(trajectory)
                return
            except RayActorError:
                await asyncio.sleep(RETRY_AFTER_S)


class RaySource:
    """replay -> prefetch, over all shards in equal parts."""

    def __init__(self, shards: Sequence[Any]):
        self._shards = shards

    def sample(self, num_decisions: int, timeout_s: float) -> Sequence[Trajectory]:
        part = -(-num_decisions // len(self._shards))
        try:
            parts = ray.get([shard.sample.remote(part, timeout_s) for shard in self._shards])
        except RayActorError:
            time.sleep(RETRY_AFTER_S)
            return ()
        return [trajectory for part in parts for trajectory in part]


class RayTasks:
    """tasks -> rollout: plans are fetched and outcomes reported `block` at a time, in one call."""

    def __init__(self, controller: Any, worker: str, block: int):
        self._controller = controller
        self._worker = worker
        self._block = block
        self._plans: deque[EpisodePlan] = deque()
        self._episodes: list[Episode] = []
        self._fetching = asyncio.Lock()

    async def next_episode(self) -> EpisodePlan | None:
        async with self._fetching:
            while not self._plans:
                episodes, self._episodes = self._episodes, []
                plans = await self._controller.exchange.remote(self._worker, episodes, self._block)
                if plans is None:
                    return None
                self._plans.extend(plans)
        return self._plans.popleft()

    async def report(self, episode: Episode) -> None:
        self._episodes.append(episode)


class RayWeights:
    """learner -> weights -> inference: the tensors lie in Ray's object store, their owner is the learner.

    A version is known by its publication number, which goes on counting when a restarted learner starts again from an
    older version.
    """

    def __init__(self, controller: Any):
        self._controller = controller
        self._publication = 0

    def publish(self, weights: Weights) -> None:
        arrays = {name: tensor.numpy() for name, tensor in weights.tensors.items()}
        self._controller.publish.remote(weights.version, [ray.put(arrays)])

    def latest(self, after: int, timeout_s: float) -> Weights | None:
        answer = ray.get(self._controller.latest.remote(self._publication, timeout_s), timeout=timeout_s + 30)
        if answer is None:
            return None
        self._publication, version, (reference,) = answer
        try:
            return Weights(version=version, tensors=ray.get(reference, timeout=60))
        except (ObjectLostError, GetTimeoutError):
            return None  # the learner died with them; it publishes again when it is back
