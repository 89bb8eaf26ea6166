"""The simulator itself as a world model: what a perfect one could give, and whether the rest of the pipeline learns.

It says nothing about models; it separates their errors from those of everything around them, and it costs what the
simulator costs. Imaginations must start from trajectories that kept their state (`rollout.keep_state`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32
from torch import Tensor

from accerl.envs.state import unpack_state
from accerl.protocols import StatefulEnv
from accerl.types import Observation
from accerl_wm.carriers import Frames, Origin


@dataclass(frozen=True, slots=True)
class Moment:
    """Where one of its imaginations is."""

    state: Mapping[str, np.ndarray]
    observation: Observation
    success: bool
    ended: bool


class Oracle:
    """An `ObservationModel`: the simulator through `save_state` and `load_state`, row by row.

    Actions after the end of an episode change nothing.

    Args:
        make_env: of the real environment, called at the first prediction, in whose thread it stays.
    """

    history = 1

    def __init__(self, make_env: Callable[[], StatefulEnv]):
        self._make_env = make_env
        self._env: StatefulEnv | None = None
        self._here: Moment | None = None  # that the environment is at now

    def predict(self, past: Frames, actions: Float32[Tensor, "batch history chunk action"]) -> Frames:
        """Raises ValueError for an imagination that starts where the simulator's state was not kept."""
        memory = past.memory or [None] * len(past)
        moments = [
            self._play(row, action) for row, action in zip(memory, actions[:, -1].numpy(force=True), strict=True)
        ]
        images = np.stack([moment.observation["images"] for moment in moments])
        proprio = np.stack([moment.observation["proprio"] for moment in moments])
        device = past.images.device
        return Frames(
            images=torch.from_numpy(images).to(device), proprio=torch.from_numpy(proprio).to(device), memory=moments
        )

    def close(self) -> None:
        if self._env is not None:
            self._env.close()

    def _play(self, memory: Any, action: np.ndarray) -> Moment:
        moment = memory if isinstance(memory, Moment) else self._begin(memory)
        if moment.ended:
            return moment
        if self._env is None:
            self._env = self._make_env()
        if moment is not self._here:
            self._env.load_state(moment.state)
        result = self._env.step_chunk(action)
        ended = result.terminal or result.truncated
        self._here = Moment(self._env.save_state(), result.observation, result.success, ended)
        return self._here

    def _begin(self, origin: Origin | None) -> Moment:
        """Where a real trajectory was, found by playing it again from the state that it kept."""
        if origin is None or origin.state is None:
            raise ValueError("rollout.keep_state: the simulator's state was not kept, so the oracle cannot start there")
        if self._env is None:
            self._env = self._make_env()
        state = unpack_state(origin.state)
        observation = self._env.load_state(state)
        for action in origin.played:
            observation = self._env.step_chunk(action).observation
        self._here = Moment(self._env.save_state() if len(origin.played) else state, observation, False, False)
        return self._here


class OracleReward:
    """A `RewardModel`: what the simulator says. A real moment that an imagination starts from is no success."""

    def predict(self, frames: Frames, instructions: Sequence[str]) -> Float32[Tensor, " batch"]:
        memory = frames.memory or [None] * len(frames)
        success = [isinstance(moment, Moment) and moment.success for moment in memory]
        return torch.tensor(success, dtype=torch.float32, device=frames.images.device)
