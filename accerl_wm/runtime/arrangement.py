"""Where an imagination's models are: in its own process (colocated), or in services that others ask too (pooled)."""

from __future__ import annotations

import asyncio
from typing import Any, Protocol

from accerl.config import RunConfig
from accerl.policy_server import LocalBatches
from accerl_wm.frames import RealEpisode
from accerl_wm.imagination import Models
from accerl_wm.reliability import Audited, audit_episode
from accerl_wm.runtime.models import Follower, LiveWorld, load_model
from accerl_wm.runtime.pool import Pool
from accerl_wm.services import AskedObservation, AskedReward, PooledModels, Seen, Sight
from accerl_wm.world import Imagined, Question, WorldModel


class Arrangement(Protocol):
    """imagination -> models."""

    async def open(self) -> tuple[Models, int]:
        """The models, for askers in this event loop, and the history they look back on."""
        ...

    async def follow(self) -> None:
        """Take newer weights as they come; until cancelled."""
        ...

    async def audit(self, episode: RealEpisode) -> Audited:
        """Imagine a whole one, in the loop of `open`."""
        ...

    def report(self) -> dict[str, float]: ...


def arrange(config: RunConfig, controller: Any) -> Arrangement:
    return Pooled(config, controller) if config.imagination.placement == "pooled" else Colocated(config, controller)


class Colocated:
    """Both models in this process; one batch answers all that wait here."""

    def __init__(self, config: RunConfig, controller: Any):
        self._config = config
        observation, reward = load_model(config, "observation"), load_model(config, "reward")
        self._follower = Follower(controller, {"observation": observation, "reward": reward})
        section = config.imagination
        self._world = LiveWorld(WorldModel(observation, reward, section.device, section.dtype), self._follower)

    async def open(self) -> tuple[Models, int]:
        batches: LocalBatches[Question, Imagined] = LocalBatches(self._world.answer)
        return batches, self._world.world.history

    async def follow(self) -> None:
        await asyncio.gather(self._follower.follow("observation"), self._follower.follow("reward"))

    async def audit(self, episode: RealEpisode) -> Audited:
        self._follower.settle()
        return audit_episode(
            self._world.world, episode, self._config.env.chunk_length, self._config.imagination.threshold
        )

    def report(self) -> dict[str, float]:
        return {"world_model_version": float(self._follower.taken)}


class Pooled:
    """No model in this process; the services have the newest weights by themselves."""

    def __init__(self, config: RunConfig, controller: Any):
        self._config = config
        num = config.imagination.num_services
        self._observation: Pool[Question, Seen] = Pool(controller, "predictor", num)
        self._reward: Pool[Sight, float] = Pool(controller, "judge", num)
        self._world: WorldModel

    async def open(self) -> tuple[Models, int]:
        history, _ = await asyncio.gather(self._observation.open(), self._reward.open())
        loop = asyncio.get_running_loop()
        self._world = WorldModel(
            AskedObservation(self._observation, loop, history), AskedReward(self._reward, loop), device="cpu"
        )
        return PooledModels(self._observation, self._reward), history

    async def follow(self) -> None:
        """Nothing to take."""

    async def audit(self, episode: RealEpisode) -> Audited:
        length, threshold = self._config.env.chunk_length, self._config.imagination.threshold
        return await asyncio.to_thread(audit_episode, self._world, episode, length, threshold)

    def report(self) -> dict[str, float]:
        return {}
