"""The rollout role as an actor."""

from __future__ import annotations

import asyncio
import os
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

from accerl.calls import Calls, LostCall, bound, lost_calls
from accerl.config import RunConfig
from accerl.envs import make_env
from accerl.rollout import RolloutWorker, derive_seed
from accerl.runtime.actors.role import Role, Wiring, node_id
from accerl.runtime.ports import Directory, RaySink, RayTasks, follow_directory
from accerl.runtime.requests import RequestClient
from accerl.runtime.requests_ray import RayCalls
from accerl.runtime.requests_zmq import Sockets


class RolloutActor(Role):
    """Plays until the controller has nothing more for it."""

    def __init__(self, config: RunConfig, index: int, wiring: Wiring):
        super().__init__(config, f"rollout-{index}", wiring.controller)
        os.environ["OMP_NUM_THREADS"] = "1"  # for an environment that computes in torch
        self._config = config
        self._index = index
        self._wiring = wiring
        self._worker: RolloutWorker | None = None

    async def work(self, incarnation: int) -> None:
        config, controller = self._config, self._wiring.controller
        name = f"{self.name}.{incarnation}"
        sink = RaySink(controller, tracks_versions=config.max_policy_lag is not None)
        medium = RayCalls() if config.inference.transport == "ray" else Sockets(node_id(), self._wiring.client_keys)
        with ExitStack() as threads:
            executors = [
                threads.enter_context(ThreadPoolExecutor(max_workers=1, thread_name_prefix="environments"))
                for _ in range(min(config.rollout.threads_per_worker, config.rollout.slots_per_worker))
            ]
            calls = Calls(self._notes(incarnation), config.env.tasks, len(executors), self._crash_log_path)
            bound(calls, config.rollout.hang_s, self._crash_log)
            async with RequestClient(medium, self.name, self._index, config.is_lockstep) as client:

                def use(directory: Directory) -> None:
                    sink.set_shards(directory.taking)
                    sink.set_observers(directory.observers)
                    client.set_services(directory.services)

                following = asyncio.create_task(follow_directory(controller, use))
                self._worker = RolloutWorker(
                    name=name,
                    make_env=lambda: make_env(config.env),
                    config=config.rollout,
                    client=client,
                    sink=sink,
                    tasks=RayTasks(controller, name),
                    seed=derive_seed(config.seed, self._index, incarnation),
                    executors=executors,
                    tracer=self.tracer,
                    calls=calls,
                )
                try:
                    await self._worker.run()
                finally:
                    following.cancel()

    async def lost_calls(self, incarnation: int) -> list[LostCall]:
        """What the process before this one, the given one, was calling when it ended; told once."""
        notes, config = self._notes(incarnation), self._config
        lost = lost_calls(notes, config.env.tasks, self._crash_log_path, config.rollout.hang_s)
        notes.unlink(missing_ok=True)
        return lost

    def _notes(self, incarnation: int) -> Path:
        return self._crash_log_path.with_name(f"{self.name}.{incarnation}.calls")

    async def health(self) -> dict[str, float]:
        decisions = 0 if self._worker is None else self._worker.num_decisions
        return {**await super().health(), "progress": decisions}
