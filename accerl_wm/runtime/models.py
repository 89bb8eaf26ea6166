"""The newest weights of the two models, from whoever trains them to whoever asks them."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, NamedTuple

import ray
from ray.exceptions import RayError

from accerl import companions, demos
from accerl.config import RunConfig
from accerl_wm import store
from accerl_wm.frames import FrameBuffer, of_demonstration
from accerl_wm.world import Imagined, Question, WorldModel

FOLLOW_S = 20.0
"""Longest wait of one question for newer weights."""
Name = Literal["observation", "reward"]


def world_folder(config: RunConfig) -> Path:
    """Of the models that the run has trained."""
    return config.folder / "world"


class Found(NamedTuple):
    """A model as the run has trained it last, or as it was given."""

    model: Any
    updates: int
    """By the run."""
    damaged: Sequence[str]
    """A sentence for each newer one that cannot be used."""


def find_model(config: RunConfig, name: Name) -> Found:
    """Where the newest is damaged, the one before it."""
    given, device = config.imagination.world_model, config.imagination.device
    assert given is not None
    newest = companions.newest_whole(world_folder(config), name)
    then = "the model that the run was given" if newest.folder is None else newest.folder.name
    damaged = [f"{path.name} is damaged ({reason}); going on from {then}" for path, reason in newest.damaged.items()]
    if newest.folder is None:
        return Found(store.load_model(given, name, device), 0, damaged)
    return Found(store.load_model(newest.folder, name, device), companions.num_updates(newest.folder), damaged)


def load_model(config: RunConfig, name: Name) -> Any:
    """As `find_model`, for those who do not train it."""
    return find_model(config, name).model


def new_frames(config: RunConfig, owner: str, held_out: float = 0.0) -> FrameBuffer:
    """With the demonstrations that imagination may start from.

    Args:
        owner: name of the role that they are for.
    """
    section = config.imagination
    folder = config.folder / "frames" / owner if section.frames_on_disk else None
    frames = FrameBuffer(config.env.chunk_length, section.frames_mb * 2**20, held_out, folder, config.env.max_decisions)
    for data in section.demos:
        frames.add(map(of_demonstration, demos.load(data, failures=True)[0]))
    return frames


async def publish(controller: Any, name: Name, model: Any) -> None:
    """Make the model's weights the newest ones."""
    state = {key: value.detach().cpu().numpy() for key, value in model.state_dict().items()}
    await controller.post.remote(name, [ray.put(state)])


class Follower:
    """Takes newer weights as they are published, and puts them in place when it is told that nobody predicts."""

    def __init__(self, controller: Any, models: dict[Name, Any]):
        self._controller = controller
        self._models = models
        self._waiting: dict[Name, dict[str, Any]] = {}
        self.taken = 0

    async def follow(self, name: Name) -> None:
        """Until cancelled."""
        number = 0
        while True:
            answer = await self._controller.news.remote(name, number, FOLLOW_S)
            if answer is not None:
                number, (reference,) = answer
                with suppress(RayError):  # whoever trains it has died, and tells its next ones when it is back
                    self._waiting[name] = await reference

    def settle(self) -> None:
        """Put in place what has come."""
        import torch

        while self._waiting:
            name, state = self._waiting.popitem()
            self._models[name].load_state_dict({key: torch.from_numpy(value.copy()) for key, value in state.items()})
            self.taken += 1


class LiveWorld:
    """A world model whose weights are replaced between two batches."""

    def __init__(self, world: WorldModel, follower: Follower):
        self.world = world
        self._follower = follower

    def answer(self, questions: Sequence[Question]) -> list[Imagined]:
        self._follower.settle()
        return self.world.answer(questions)
