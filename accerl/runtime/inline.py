"""The same roles in one process, in lockstep and deterministic: for debugging, parity and tests.

all slots step ─► one forward ─► … ─► every `decisions_per_update` decisions: one update ─► new weights at once
"""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Callable

import torch

from accerl.config import RunConfig
from accerl.inference import LocalClient, PolicyServer
from accerl.learner import Learner
from accerl.prefetch import pack
from accerl.protocols import Env, Policy
from accerl.replay import Replay
from accerl.rollout import RolloutWorker
from accerl.tasks import TaskSampler
from accerl.types import Episode, EpisodePlan, Trajectory


class InlineRun:
    """A run without processes, threads, timers or files.

    Args:
        decisions_per_update: decisions collected between two updates; `learner.batch_decisions` uses each once.
        on_update: called with the metrics of each update.
    """

    def __init__(
        self,
        config: RunConfig,
        policy: Policy,
        make_env: Callable[[], Env],
        decisions_per_update: int | None = None,
        on_update: Callable[[dict[str, float]], None] | None = None,
    ):
        self.config = config
        self.episodes: list[Episode] = []
        reference = copy.deepcopy(policy) if config.objective.reference_kl else None
        self.learner = Learner(policy, config.learner, config.objective, reference)
        self.tasks = TaskSampler(config.env.tasks, config.tasks, config.seed)
        self.replay = Replay(config.replay, config.seed)
        self._server = PolicyServer(copy.deepcopy(policy), config.inference)
        self._decisions_per_update = decisions_per_update or config.learner.batch_decisions
        self._next_update = max(self._decisions_per_update, config.replay.min_decisions)
        self._on_update = on_update
        self._worker = RolloutWorker(
            name="inline",
            make_env=make_env,
            config=config.rollout,
            client=LocalClient(self._server),
            sink=self,
            tasks=self,
            seed=config.seed,
        )

    @property
    def progress(self) -> float:
        """Share of the budget that is spent; 0 without one."""
        limits = self.config.limits
        shares = [0.0]
        if limits.max_decisions:
            shares.append(self.replay.pushed_decisions / limits.max_decisions)
        if limits.max_updates:
            shares.append(self.learner.version / limits.max_updates)
        return min(1.0, max(shares))

    def run(self) -> None:
        """Until a limit of `config.limits` is reached; a limit in seconds does not apply here."""
        torch.manual_seed(self.config.seed)
        asyncio.run(self._worker.run())

    async def next_episode(self) -> EpisodePlan | None:
        return EpisodePlan(task=self.tasks.next_task()) if self.progress < 1 else None

    async def report(self, episode: Episode) -> None:
        self.tasks.report(episode)
        self.episodes.append(episode)

    async def put(self, trajectory: Trajectory) -> None:
        if not self.replay.push(trajectory) and self.progress < 1:
            raise RuntimeError(
                f"decisions_per_update: {self._decisions_per_update} leaves decisions unused until "
                f"replay.capacity_decisions={self.config.replay.capacity_decisions} is full; raise the capacity"
            )
        while self.replay.pushed_decisions >= self._next_update and self.progress < 1:
            self._next_update += self._decisions_per_update
            self._learn()

    def _learn(self) -> None:
        trajectories = self.replay.sample(self.config.learner.batch_decisions)
        if not trajectories:
            return
        bootstraps = self.config.objective.time_limit == "bootstrap"
        metrics = self.learner.update(pack(trajectories, self.config.env.chunk_length, bootstraps), self.progress)
        if self.learner.version % self.config.learner.publish_every == 0:
            self._server.load(self.learner.weights())
        if self._on_update is not None:
            self._on_update(metrics)
