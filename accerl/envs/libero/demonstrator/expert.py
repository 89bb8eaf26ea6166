"""The demonstrator as an `Expert`: one action at a time, for an environment of single actions."""

from __future__ import annotations

import numpy as np

from accerl.envs.libero.demonstrator.motions import OPEN, Motion
from accerl.envs.libero.demonstrator.planner import plan
from accerl.envs.libero.demonstrator.scene import Scene
from accerl.envs.libero.environment import Libero

STILL = np.array([0.0] * 6 + [OPEN])


class Demonstrator:
    """Plans anew at the beginning of each episode of the environment that it is asked about.

    Args:
        noise: standard deviation of the Gaussian noise on each action but the gripper's, which the plan makes up for.
        seed: of the noise.
    """

    def __init__(self, *, speed: float = 1.0, noise: float = 0.0, seed: int = 0):
        self._speed = speed
        self._noise = noise
        self._random = np.random.default_rng(seed)
        self._episode = -1
        self._actions: Motion | None = None

    def __call__(self, env: Libero) -> np.ndarray:
        """The next action [7] in [-1, 1]; stands still once the plan is through."""
        if self._actions is None or env.episode != self._episode:
            self._episode = env.episode
            self._actions = plan(Scene(env.simulation))
        action = np.array(next(self._actions, STILL))
        action[:6] = self._speed * action[:6] + self._noise * self._random.standard_normal(6)
        return np.clip(action, -1.0, 1.0).astype(np.float32)
