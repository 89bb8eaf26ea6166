"""The ports between roles over Ray: each a few lines around a remote call.

A call of the controller whose process ends is made again by Ray, and answered by the one that takes over; said twice,
nothing counts twice.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayActorError

from accerl.types import BatchRule, Episode, EpisodePlan, EpisodeSpoiled, Trajectory, TrajectoryRefused

RETRY_AFTER_S = 0.5
FOLLOW_S = 20.0
"""Longest wait of one question whether the directory has changed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Directory:
    """Who is there. A shard that is to leave takes nothing more, and is emptied by the learner."""

    taking: Mapping[str, Any]
    """Shards that take trajectories."""
    giving: Mapping[str, Any]
    """Shards that have some."""
    services: Mapping[str, Any]
    """Endpoints of the inference services, or their actors."""
    imagined: Mapping[str, Any] = field(default_factory=dict)
    """Shards that take and give what is imagined."""
    observers: Mapping[str, Any] = field(default_factory=dict)
    """Those that are shown each real trajectory, by `observe`."""


async def follow_directory(controller: Any, use: Callable[[Directory], None]) -> None:
    """Call `use` with the directory, now and whenever it changes; until cancelled."""
    number = -1
    while True:
        answer = await controller.directory.remote(number, FOLLOW_S)
        if answer is not None:
            number, directory = answer
            use(directory)


class RaySink:
    """rollout -> replay, to the shards in turn. A trajectory is kept and sent again while its shard is restarted.

    Args:
        tracks_versions: tell the controller of each segment of an episode that goes on.
    """

    def __init__(self, controller: Any, tracks_versions: bool):
        self._controller = controller
        self._tracks_versions = tracks_versions
        self._shards: list[Any] = []
        self._observers: list[Any] = []
        self._turn = itertools.count()
        self._there = asyncio.Event()

    def set_shards(self, shards: Mapping[str, Any]) -> None:
        self._shards = list(shards.values())
        if self._shards:
            self._there.set()

    def set_observers(self, observers: Mapping[str, Any]) -> None:
        """Who else gets what is put, without being waited for."""
        self._observers = list(observers.values())

    async def put(self, trajectory: Trajectory) -> None:
        await self._there.wait()
        while not await self._push(self._shards[next(self._turn) % len(self._shards)], trajectory):
            await asyncio.sleep(RETRY_AFTER_S)
        if self._observers:  # who are not shown what was refused
            once = ray.put(trajectory)
            for observer in self._observers:
                observer.observe.remote(once)
        if self._tracks_versions and not trajectory.ended:
            self._controller.deliver.remote(trajectory.episode, int(trajectory.policy_version[-1]))

    @staticmethod
    async def _push(shard: Any, trajectory: Trajectory) -> bool:
        """False if the shard has died, or was closed."""
        try:
            answer: bool | TrajectoryRefused = await shard.push.remote(trajectory)
        except RayActorError:
            return False
        if isinstance(answer, TrajectoryRefused):
            raise answer
        return answer


class RaySource:
    """replay -> prefetch, over all shards in equal parts.

    A shard that does not answer is left out of this asking. What it had handed out is confirmed to it even after it
    has left the directory.

    Args:
        is_bounded: staleness is, so that the controller says what a batch is made of.
    """

    def __init__(self, controller: Any, is_bounded: bool):
        self._controller = controller
        self._is_bounded = is_bounded
        self._shards: dict[str, Any] = {}
        self._lenders: dict[str, Any] = {}
        self._seen = (-1, -1)

    def set_shards(self, shards: Mapping[str, Any]) -> None:
        """Those to ask from now on; any thread may call."""
        self._shards = dict(shards)

    def reclaim(self) -> int:
        """Make unused again what a learner before this one had taken and not trained on, in every shard; returns its
        decisions.
        """
        left, returned = dict(self._shards), 0
        while left:
            calls = {name: shard.reclaim.remote() for name, shard in left.items()}
            for name, call in calls.items():
                try:
                    decisions: Any = ray.get(call, timeout=30.0)
                    returned += decisions
                    del left[name]
                except (RayActorError, GetTimeoutError):
                    time.sleep(RETRY_AFTER_S)  # it is being restarted
        return returned

    def sample(self, num_decisions: int, batch: int, timeout_s: float) -> Sequence[Trajectory]:
        part = -(-num_decisions // max(1, len(self._shards)))
        return self._gather(lambda shard: shard.sample.remote(part, batch, timeout_s), timeout_s)

    def rule(self, batch: int, timeout_s: float) -> BatchRule:
        if not self._is_bounded:
            return BatchRule()
        known, seen = self._seen
        call = self._controller.rule.remote(batch, seen if known == batch else -1, timeout_s)
        rule, events = ray.get(call, timeout=timeout_s + 60)
        self._seen = (batch, events)
        return rule

    def take(self, num_decisions: int, rule: BatchRule, batch: int, timeout_s: float) -> Sequence[Trajectory]:
        part = -(-num_decisions // max(1, len(self._shards)))
        wait_s = 0.0 if self._is_bounded else timeout_s
        return self._gather(lambda shard: shard.take.remote(part, rule, batch, wait_s), wait_s)

    def confirm(self, batch: int) -> None:
        for shard in (self._lenders | self._shards).values():
            shard.confirm.remote(batch)
        self._lenders = dict(self._shards)

    def _gather(self, call: Callable[[Any], Any], timeout_s: float) -> list[Trajectory]:
        self._lenders |= self._shards
        if not self._shards:
            time.sleep(timeout_s)
        return [trajectory for part in self._ask(call, timeout_s + 60) for trajectory in part]

    def _ask(self, call: Callable[[Any], Any], timeout_s: float) -> list[Any]:
        """The answers of the shards that gave one."""
        answers = []
        failed = False
        for reference in [call(shard) for shard in self._shards.values()]:
            try:
                answers.append(ray.get(reference, timeout=timeout_s))
            except (RayActorError, GetTimeoutError):
                failed = True
        if failed and not answers:
            time.sleep(RETRY_AFTER_S)
        return answers


class RayTasks:
    """tasks -> rollout: outcomes are reported with the question for the next episode."""

    def __init__(self, controller: Any, worker: str):
        self._controller = controller
        self._worker = worker
        self._asks = itertools.count(1)
        self._episodes: list[Episode] = []

    async def next_episode(self) -> EpisodePlan | None:
        episodes, self._episodes = self._episodes, []
        return await self._controller.exchange.remote(self._worker, episodes, next(self._asks))

    async def report(self, episode: Episode) -> None:
        self._episodes.append(episode)

    async def fail(self, plan: EpisodePlan, error: Exception) -> None:
        if isinstance(error, EpisodeSpoiled):
            await self._controller.spoil.remote(self._worker, plan.number, str(error))
            return
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        await self._controller.fail.remote(self._worker, plan.number, plan.task, reason)


class Steering:
    """learner -> controller: what an update did, without waiting for the answer; and how to go on."""

    def __init__(self, controller: Any):
        self._controller = controller
        self._asked: list[tuple[int, Any]] = []
        self.state: dict[str, Any] = {}
        """The newest answer."""
        self.told = 0
        """The newest version that the controller knows of: what was trained on for it need not be kept."""
        self.ask()

    def begin(self, version: int) -> int:
        """Say that the parameters are of this version; returns the version to go on from, above all that were used."""
        return ray.get(self._controller.begin.remote(version), timeout=120)

    def ask(self) -> None:
        """Wait for the present answer."""
        self._hear()
        self.state = ray.get(self._controller.steer.remote(None, ()), timeout=120)

    def tell(self, update: Mapping[str, float] | None, version: int, episodes: Sequence[int]) -> None:
        """Report an update that made `version`, or a batch that was lost; take what answers have come meanwhile."""
        self._asked.append((version, self._controller.steer.remote(update, episodes, version)))
        self._hear()

    def _hear(self) -> None:
        while self._asked and ray.wait([self._asked[0][1]], timeout=0)[0]:
            self.told, answer = self._asked.pop(0)
            self.state = ray.get(answer)
