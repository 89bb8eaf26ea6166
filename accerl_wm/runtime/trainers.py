"""The roles that train the two models on what the workers see, each at its own pace."""

from __future__ import annotations

import asyncio
import queue
import threading
import time
from abc import abstractmethod
from typing import Any, ClassVar

import ray
import torch

from accerl.companions import CompanionWriter
from accerl.config import RunConfig
from accerl.rollout import derive_seed
from accerl.runtime.actors.role import Role, Wiring
from accerl.runtime.readings import REPORT
from accerl.trajectories import owned
from accerl.types import Trajectory
from accerl_wm import store
from accerl_wm.config import ObservationTraining, RewardTraining
from accerl_wm.frames import FrameBuffer, of_trajectory
from accerl_wm.online import OnlineTraining, Trainer
from accerl_wm.runtime.models import Follower, Name, find_model, load_model, new_frames, publish, world_folder
from accerl_wm.training import ObservationTrainer, RewardTrainer

LOOK_EVERY_S = 0.1
STEPS = 2
"""Decisions on its own outputs that the observation model goes on learning from."""


class TrainerActor(Role):
    """Trains one model in a thread, saves it and lets it be known every `imagination.publish_updates`."""

    kind: ClassVar[Name]

    def __init__(self, config: RunConfig, index: int, wiring: Wiring):
        super().__init__(config, f"{self.kind}-{index}", wiring.controller)
        torch.set_num_threads(config.imagination.num_threads)
        self._config = config
        self._seed = derive_seed(config.seed, config.imagination.seed, index)
        found = find_model(config, self.kind)
        for sentence in found.damaged:
            self._controller.incident.remote(self.name, sentence, "the one before is used")
        self._model, self._updates = found.model, found.updates
        self._arrived: queue.SimpleQueue[Trajectory] = queue.SimpleQueue()
        self._follower = Follower(self._controller, self._followed())
        self._closed = threading.Event()
        self._publishes_again = threading.Event()
        self._published = 0
        folder, checkpoints = world_folder(config), config.folder / "checkpoints"
        self._saver = CompanionWriter(folder, checkpoints, self.kind, self._accompany, self._say_not_saved)
        self._loss = float("nan")

    @abstractmethod
    def _make_trainer(self, frames: FrameBuffer) -> Trainer: ...

    def _followed(self) -> dict[Name, Any]:
        """Models of others that the training asks."""
        return {}

    @property
    def _interval(self) -> int:
        return self._config.imagination.publish_updates

    @property
    @abstractmethod
    def _updates_per_decision(self) -> float: ...

    async def work(self, incarnation: int) -> None:
        """Until the run ends. A process that replaces another one lets its weights be known at once: what that one
        had handed out went with it.
        """
        if incarnation:
            self._publishes_again.set()
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.TaskGroup() as tasks:
                for name in self._followed():
                    tasks.create_task(self._follower.follow(name))
                tasks.create_task(asyncio.to_thread(self._train, loop))
        finally:
            self._closed.set()

    async def announce(self) -> None:
        self._publishes_again.set()

    async def observe(self, trajectory: Trajectory) -> None:
        """A real one."""
        self._arrived.put(owned(trajectory))

    async def health(self) -> dict[str, float]:
        found = {**await super().health(), "progress": self._updates}
        report = {f"{self.kind}_updates": float(self._updates), f"{self.kind}_published": float(self._published)}
        if self._updates:
            report[f"{self.kind}_loss"] = self._loss
        return found | {f"{REPORT}{name}": value for name, value in report.items()}

    def _train(self, loop: asyncio.AbstractEventLoop) -> None:
        frames, before = new_frames(self._config, self.name, held_out=0.1), self._updates
        training = OnlineTraining(self._make_trainer(frames), self._updates_per_decision)
        while not self._closed.is_set():
            if self._publishes_again.is_set():
                self._publishes_again.clear()
                self._publish(loop)
            while not self._arrived.empty():
                trajectory = self._arrived.get()
                frames.add([of_trajectory(trajectory)])
                training.collected(trajectory.num_decisions)
            if not (training.is_due and frames.tasks):
                time.sleep(LOOK_EVERY_S)
                continue
            self._follower.settle()
            with self.tracer.span("train"):
                self._loss = training.update()["loss"]
            self._updates = before + training.updates
            if self._updates % self._interval == 0:
                with self.tracer.span("publish"):
                    self._saver.save(self._updates, lambda into: store.save_model(into, self.kind, self._model))
                    self._publish(loop)

    def _publish(self, loop: asyncio.AbstractEventLoop) -> None:
        asyncio.run_coroutine_threadsafe(publish(self._controller, self.kind, self._model), loop).result()
        self._published += 1

    def _accompany(self, written: str) -> list[str]:
        return ray.get(self._controller.accompany.remote(self.kind, written))

    def _say_not_saved(self, what: str) -> None:
        action = f"training goes on; free space there, it is tried again every {self._interval} updates"
        self._controller.incident.remote(self.name, what, action)


class ObservationActor(TrainerActor):
    """Trains the observation model."""

    kind = "observation"

    def _make_trainer(self, frames: FrameBuffer) -> Trainer:
        section = self._config.imagination
        config = ObservationTraining(steps=(STEPS,), lr=section.lr, device=section.device, seed=self._seed % 2**31)
        return ObservationTrainer(self._model, frames, config)

    @property
    def _updates_per_decision(self) -> float:
        return self._config.imagination.observation_updates


class RewardActor(TrainerActor):
    """Trains the reward model, on real frames and on what the newest observation model makes of them."""

    kind = "reward"

    def _make_trainer(self, frames: FrameBuffer) -> Trainer:
        section = self._config.imagination
        config = RewardTraining(lr=section.lr, device=section.device, seed=self._seed % 2**31)
        return RewardTrainer(self._model, frames, config, self._observation)

    def _followed(self) -> dict[Name, Any]:
        self._observation = getattr(self, "_observation", None) or load_model(self._config, "observation")
        return {"observation": self._observation}

    @property
    def _updates_per_decision(self) -> float:
        return self._config.imagination.reward_updates
