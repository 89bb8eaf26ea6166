"""An environment of one's own, for tutorial 04: coloured dots whose simulator takes its time, sometimes a lot of it.

A run names it as `env.suite = "slow_dots:make"`; its processes find this module as the notebook does.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from accerl.config import EnvConfig
from accerl.envs import make_env
from accerl.types import ChunkResult, EnvSpec, Observation

MEAN_S = 0.02


class SlowDots:
    """A decision takes 20 ms in the mean, and now and then ten times as long: a long tail, as physics has it."""

    def __init__(self, config: EnvConfig):
        self._env = make_env(config.model_copy(update={"suite": "dots"}))
        self._random = np.random.default_rng()

    @property
    def spec(self) -> EnvSpec:
        return self._env.spec

    def reset(
        self, *, seed: int | None = None, options: Mapping[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        self._random = np.random.default_rng(seed)
        return self._env.reset(seed=seed, options=options)

    def step_chunk(self, actions: np.ndarray, on_step: Callable[[], None] | None = None) -> ChunkResult:
        time.sleep(self._random.lognormal(np.log(MEAN_S) - 0.5, 1.0))
        return self._env.step_chunk(actions, on_step)

    def render(self, size: int) -> np.ndarray:
        return self._env.render(size)

    def close(self) -> None:
        self._env.close()


def make(config: EnvConfig, tasks: tuple[str, ...]) -> SlowDots:
    return SlowDots(config.model_copy(update={"tasks": tasks}))
