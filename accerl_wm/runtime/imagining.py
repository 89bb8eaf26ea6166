"""The imagination role: the policy in its process, and the models too or in services (`arrangement`).

weights of the policy ─► PolicyServer ──┐
                                        ├─► RolloutWorker over ImaginedEnvs ─► dreams
              models ─► Arrangement ────┘            ▲
real trajectories ─► audit ─► frames ─► starts ──────┘
"""

from __future__ import annotations

import asyncio
import queue
import sys
import threading
from collections import deque
from collections.abc import Sequence
from typing import Any

import torch

from accerl.config import RolloutConfig, RunConfig
from accerl.envs import read_spec
from accerl.policy_server import LocalClient, PolicyServer
from accerl.rollout import RolloutWorker, derive_seed
from accerl.runtime.actors.role import Role, Wiring
from accerl.runtime.ports import FOLLOW_S, RaySink, follow_directory
from accerl.runtime.readings import REPORT
from accerl.runtime.weight_channels import make_source
from accerl.trajectories import owned
from accerl.types import Episode, EpisodePlan, EpisodeSpoiled, Trajectory
from accerl_wm.frames import FrameBuffer, of_trajectory
from accerl_wm.imagination import ImaginedEnv
from accerl_wm.reliability import Audited, Reliability
from accerl_wm.runtime.arrangement import arrange
from accerl_wm.runtime.models import new_frames

LOOK_EVERY_S = 0.2
"""For real trajectories, and for what imagination waits for."""
RECENT = 200
"""Imagined episodes that `imagined_success` is about."""


class ImaginationActor(Role):
    """Imagines in a thread of its own for as long as the run lasts. The first of them audits for all."""

    def __init__(self, config: RunConfig, index: int, wiring: Wiring):
        super().__init__(config, f"imagination-{index}", wiring.controller)
        section = config.imagination
        torch.set_num_threads(section.num_threads)
        self._config = config
        self._index = index
        self._models = arrange(config, self._controller)
        inference = config.inference.model_copy(update={"device": section.device, "num_threads": section.num_threads})
        self._server = PolicyServer(
            wiring.make_policy(config.model_copy(update={"inference": inference})), inference, tracer=self.tracer
        )
        self._weights = make_source(config, self._controller, self.name)
        self._reliability = Reliability(section)
        self._horizon = section.horizon
        self._is_trusted = True
        self._arrived: queue.SimpleQueue[Trajectory] = queue.SimpleQueue()
        self._worker: RolloutWorker | None = None
        self._plans: _Plans | None = None

    async def work(self, incarnation: int) -> None:
        """Until the run ends."""
        threading.Thread(target=self._keep_receiving, name="weights", daemon=True).start()
        sink = RaySink(self._controller, tracks_versions=False)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(follow_directory(self._controller, lambda directory: sink.set_shards(directory.imagined)))
            tasks.create_task(self._models.follow())
            tasks.create_task(self._follow_knobs())
            tasks.create_task(asyncio.to_thread(asyncio.run, self._imagine(sink, incarnation)))

    async def announce(self) -> None:
        if not self._is_trusted:
            verdict = self._reliability.verdict
            await self._controller.trust.remote(verdict.share, verdict.reason)

    async def observe(self, trajectory: Trajectory) -> None:
        """A real one."""
        self._arrived.put(owned(trajectory))

    async def _follow_knobs(self) -> None:
        """Take the horizon that somebody sets; the gate shortens that one."""
        seen = 0
        while True:
            answer = await self._controller.news.remote("imagination", seen, FOLLOW_S)
            if answer is not None:
                seen, turned = answer
                self._reliability.set_horizon(turned.get("horizon", self._config.imagination.horizon))
                self._horizon = self._reliability.verdict.horizon

    async def health(self) -> dict[str, float]:
        decisions = 0 if self._worker is None else self._worker.num_decisions
        found = {**await super().health(), "progress": decisions}
        if self._index == 0:
            report = {
                **self._reliability.report(),
                **self._models.report(),
                "imagined_decisions": float(decisions),
                "imagined_horizon": float(self._horizon),
            }
            if self._plans is not None and self._plans.recent:
                report["imagined_success"] = sum(self._plans.recent) / len(self._plans.recent)
            found |= {f"{REPORT}{name}": value for name, value in report.items()}
        return found

    async def _imagine(self, sink: RaySink, incarnation: int) -> None:
        config, section = self._config, self._config.imagination
        spec = await asyncio.to_thread(read_spec, config.env)
        frames = await asyncio.to_thread(new_frames, config, self.name)
        models, history = await self._models.open()
        seed = derive_seed(config.seed, section.seed, self._index, incarnation)
        self._plans = _Plans(frames, seed, self._may_imagine)
        self._worker = RolloutWorker(
            name=f"{self.name}.{incarnation}",
            make_env=lambda: ImaginedEnv(
                spec,
                frames,
                models,
                history,
                section,
                config.objective.discount,
                horizon=lambda: self._horizon,
            ),
            config=RolloutConfig(slots_per_worker=section.slots),
            client=LocalClient(self._server),
            sink=sink,
            tasks=self._plans,
            seed=seed,
            tracer=self.tracer,
        )
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._take_in(frames))
            tasks.create_task(self._worker.run())

    async def _take_in(self, frames: FrameBuffer) -> None:
        """Real trajectories: audited, if they are whole episodes, and then among the frames."""
        while True:
            while not self._arrived.empty():
                trajectory = self._arrived.get()
                episode = of_trajectory(trajectory)
                if self._index == 0 and trajectory.ended and episode.first_step == 0:
                    with self.tracer.span("audit"):
                        audited = await self._models.audit(episode)
                    self._judge(audited)
                frames.add([episode])
                await asyncio.sleep(0)
            await asyncio.sleep(LOOK_EVERY_S)

    def _judge(self, audited: Audited) -> None:
        verdict = self._reliability.add(audited)
        self._horizon = verdict.horizon
        is_trusted = verdict.share > 0
        if is_trusted != self._is_trusted:
            self._controller.trust.remote(verdict.share, verdict.reason)
        self._is_trusted = is_trusted

    def _may_imagine(self) -> bool:
        return self._is_trusted and self._server.version >= 0

    def _keep_receiving(self) -> None:
        while True:
            weights = self._weights.latest(self._server.version, timeout_s=5.0)
            if weights is not None:
                self._server.load(weights)


class _Plans:
    """Tasks by turns, once there is a policy, a model that is trusted, and a moment to start from."""

    def __init__(self, frames: FrameBuffer, seed: int, may_imagine: Any):
        self.recent: deque[bool] = deque(maxlen=RECENT)
        """Successes, of the newest imagined episodes."""
        self._frames = frames
        self._seed = seed
        self._may_imagine = may_imagine
        self._number = 0

    async def next_episode(self) -> EpisodePlan | None:
        while not (self._may_imagine() and self._tasks):
            await asyncio.sleep(LOOK_EVERY_S)
        tasks, number = self._tasks, self._number
        self._number += 1
        return EpisodePlan(
            task=tasks[number % len(tasks)], seed=derive_seed(self._seed, number), number=number, is_imagined=True
        )

    async def report(self, episode: Episode) -> None:
        self.recent.append(episode.success)

    async def fail(self, plan: EpisodePlan, error: Exception) -> None:
        """One that is spoiled is left out; the worker ends by itself where that goes on."""
        if not isinstance(error, EpisodeSpoiled):
            raise error
        print(f"imagination: episode {plan.number}: {error}", file=sys.stderr, flush=True)

    @property
    def _tasks(self) -> Sequence[str]:
        return self._frames.tasks
