"""The roles on Ray actors. Each has `run`, which returns when its work is done, and `health`."""

from __future__ import annotations

import asyncio
import faulthandler
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import ray
import torch

from accerl import checkpoint
from accerl.config import RunConfig, Section
from accerl.envs import make_env
from accerl.inference import InferenceService, PolicyServer
from accerl.learner import Learner
from accerl.prefetch import Prefetcher, pack
from accerl.protocols import Policy
from accerl.replay import Replay
from accerl.rollout import RolloutWorker, derive_seed
from accerl.runtime.ports import RaySink, RaySource, RayTasks, RayWeights
from accerl.runtime.requests import RequestClient, RequestServer
from accerl.trajectories import TrajectorySample
from accerl.types import Batch, Trajectory


class Role:
    """What all roles have in common: a log for crashes and a reading of their processor time."""

    def __init__(self, folder: Path, name: str):
        self._crash_log = (folder / "logs" / f"{name}.crash.log").open("a")
        faulthandler.enable(self._crash_log)

    async def health(self) -> dict[str, float]:
        """Processor seconds of this process, and the wall clock beside them."""
        return {"cpu_s": time.process_time(), "time": time.monotonic()}


class RolloutActor(Role):
    def __init__(self, config: RunConfig, index: int, endpoint: str, shard: Any, controller: Any):
        super().__init__(config.folder, f"rollout-{index}")
        torch.set_num_threads(1)
        self._config = config
        self._index = index
        self._endpoint = endpoint
        self._sink = RaySink(shard)
        self._controller = controller
        self._worker: RolloutWorker | None = None

    async def run(self, incarnation: int) -> None:
        name = f"rollout-{self._index}.{incarnation}"
        block = max(1, self._config.rollout.slots_per_worker // 4)
        with ThreadPoolExecutor(max_workers=1, thread_name_prefix="environments") as thread:
            async with RequestClient(self._endpoint) as client:
                self._worker = RolloutWorker(
                    name=name,
                    make_env=lambda: make_env(self._config.env),
                    config=self._config.rollout,
                    client=client,
                    sink=self._sink,
                    tasks=RayTasks(self._controller, name, block),
                    seed=derive_seed(self._config.seed, self._index, incarnation),
                    executor=thread,
                )
                await self._worker.run()

    async def health(self) -> dict[str, float]:
        decisions = 0 if self._worker is None else self._worker.num_decisions
        return {**await super().health(), "progress": decisions}


class InferenceActor(Role):
    def __init__(self, config: RunConfig, index: int, endpoint: str, start: Path, controller: Any):
        super().__init__(config.folder, f"inference-{index}")
        torch.set_num_threads(config.inference.num_threads)
        self._endpoint = endpoint
        self._weights = RayWeights(controller)
        self._server = PolicyServer(checkpoint.load_policy(start), config.inference)
        self._service = InferenceService(self._server.answer, config.inference.batch_size, config.inference.max_wait_s)
        self._closed = threading.Event()

    async def run(self, incarnation: int) -> None:
        """Until the process is ended."""
        while not await asyncio.to_thread(self._receive_weights):
            pass  # the first answer is given by a version that the learner has published
        threading.Thread(target=self._keep_receiving, name="weights", daemon=True).start()
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._service.serve())
                tasks.create_task(RequestServer(self._endpoint, self._service.ask).serve())
        finally:
            self._closed.set()

    async def health(self) -> dict[str, float]:
        statistics = self._service.statistics
        return {
            **await super().health(),
            "progress": statistics.num_requests,
            "batches": statistics.num_batches,
            "wait_s": statistics.wait_s,
            "version": self._server.version,
        }

    def _keep_receiving(self) -> None:
        while not self._closed.is_set():
            self._receive_weights()

    def _receive_weights(self) -> bool:
        weights = self._weights.latest(self._server.version, timeout_s=5.0)
        if weights is not None:
            self._server.load(weights)
        return weights is not None


class ReplayActor(Role):
    """A shard. It copies what it takes, so that it owns it and pins nothing in shared memory."""

    def __init__(self, config: RunConfig, index: int):
        super().__init__(config.folder, f"replay-{index}")
        self._replay = Replay(config.replay, derive_seed(config.seed, index, 7))
        self._changed = asyncio.Condition()
        self._recent: deque[Trajectory] = deque(maxlen=32)
        self._sample = TrajectorySample(config.folder / "trajectories")
        self._forever = asyncio.Event()

    async def run(self, incarnation: int) -> None:
        """Until the process is ended."""
        await self._forever.wait()

    async def push(self, trajectory: Trajectory) -> None:
        own = replace(
            trajectory,
            **{
                name: np.array(value)
                for name in Trajectory.__dataclass_fields__
                if isinstance(value := getattr(trajectory, name), np.ndarray)
            },
            blob={name: np.array(value) for name, value in trajectory.blob.items()},
        )
        async with self._changed:
            await self._changed.wait_for(lambda: self._replay.push(own))
            self._changed.notify_all()
        self._recent.append(own)
        await asyncio.to_thread(self._sample.offer, own)

    async def sample(self, num_decisions: int, timeout_s: float) -> list[Trajectory]:
        deadline = time.monotonic() + timeout_s
        async with self._changed:
            while not (trajectories := self._replay.sample(num_decisions)):
                try:
                    await asyncio.wait_for(self._changed.wait(), deadline - time.monotonic())
                except TimeoutError:
                    return []
            self._changed.notify_all()
        return list(trajectories)

    async def recent(self, num: int) -> list[Trajectory]:
        """The newest trajectories, oldest first."""
        return list(self._recent)[-num:]

    async def health(self) -> dict[str, float]:
        replay = self._replay
        return {
            **await super().health(),
            "progress": replay.pushed_decisions,
            "decisions": replay.num_decisions,
            "unused": replay.unused_decisions,
            "discarded": replay.discarded_decisions,
        }


class LearnerActor(Role):
    """Trains in a thread, from the newest checkpoint if the run has one."""

    def __init__(self, config: RunConfig, start: Path, shards: list[Any], controller: Any):
        super().__init__(config.folder, "learner")
        torch.set_num_threads(config.learner.num_threads)
        torch.manual_seed(config.seed)
        self._config = config
        self._shards = shards
        self._controller = controller
        self._weights = RayWeights(controller)
        self._checkpoints = config.folder / "checkpoints"
        written = checkpoint.list_checkpoints(self._checkpoints)
        self._policy: Policy = checkpoint.load_policy(written[-1] if written else start)
        reference = checkpoint.load_policy(start) if config.objective.reference_kl else None
        self._learner = Learner(self._policy, config.learner, config.objective, reference)
        if written:
            self._learner.load_state_dict(checkpoint.load_checkpoint(written[-1])[0])
        self._wanted = threading.Event()
        self._saved = threading.Condition()
        self._last_saved: Path | None = written[-1] if written else None

    async def run(self, incarnation: int) -> None:
        with ThreadPoolExecutor(max_workers=1, thread_name_prefix="learner") as thread:
            await asyncio.get_running_loop().run_in_executor(thread, self._train)

    async def checkpoint(self) -> str:
        """Save as soon as the update at hand is done; returns the folder."""
        return await asyncio.get_running_loop().run_in_executor(None, self._request_checkpoint)

    async def health(self) -> dict[str, float]:
        return {**await super().health(), "progress": self._learner.updates}

    def _train(self) -> None:
        config = self._config.learner
        steering: Mapping[str, Any] = ray.get(self._controller.steer.remote(None))
        self._learner.version = max(self._learner.version, steering["version"])
        self._weights.publish(self._learner.weights())
        prefetcher = Prefetcher(RaySource(self._shards), self._pack, config.batch_decisions, config.prefetch)
        last_save = time.monotonic()
        try:
            while not steering["stop"]:
                if self._wanted.is_set() or time.monotonic() - last_save > config.checkpoint_every_s:
                    self._save()
                    last_save = time.monotonic()
                batch = None if steering["paused"] else prefetcher.get(timeout_s=0.5)
                if batch is None:
                    if steering["paused"]:
                        time.sleep(0.2)
                    steering = ray.get(self._controller.steer.remote(None))
                    continue
                metrics = self._learner.update(batch, steering["progress"])
                if self._learner.updates % config.publish_every == 0:
                    self._weights.publish(self._learner.weights())
                steering = ray.get(self._controller.steer.remote({"updates": self._learner.updates, **metrics}))
                self._turn(steering["knobs"])
        finally:
            prefetcher.close()
        self._save()

    def _pack(self, trajectories: Sequence[Trajectory]) -> Batch:
        bootstraps = self._config.objective.time_limit == "bootstrap"
        return pack(trajectories, self._config.env.chunk_length, bootstraps)

    def _turn(self, knobs: Mapping[str, Mapping[str, Any]]) -> None:
        """Change the objective's and the learner's settings while training."""
        if knobs:
            self._learner.configure(
                _changed(self._config.learner, knobs.get("learner", {})),
                _changed(self._config.objective, knobs.get("objective", {})),
            )

    def _save(self) -> None:
        run_state: Any = ray.get(self._controller.snapshot.remote())
        path = checkpoint.save_checkpoint(
            self._checkpoints,
            self._policy.config_dict(),
            self._learner.weights().tensors,
            self._learner.state_dict(),
            run_state,
            self._config.learner.keep_checkpoints,
        )
        with self._saved:
            self._wanted.clear()
            self._last_saved = path
            self._saved.notify_all()

    def _request_checkpoint(self) -> str:
        with self._saved:
            self._wanted.set()
            self._saved.wait_for(lambda: not self._wanted.is_set())
            return str(self._last_saved)


def _changed(section: Any, fields: Mapping[str, Any]) -> Any:
    assert isinstance(section, Section)
    return type(section)(**{**section.model_dump(), **fields})
