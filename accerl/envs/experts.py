"""Scripted demonstrators, and how to make them worse."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np

from accerl.envs.dots import SPEED, Dots


class ScriptedExpert:
    """An `Expert` after a controller that gives actions in [-1, 1]: clip(speed * controller + noise * N(0, 1)).

    A speed below 1 and some noise give demonstrations of middling quality, which leave something to learn and show
    how to recover.

    Args:
        controller: of an environment, its next action.
        seed: of the noise.
    """

    def __init__(
        self, controller: Callable[[Any], np.ndarray], *, speed: float = 1.0, noise: float = 0.0, seed: int = 0
    ) -> None:
        self._controller = controller
        self._speed = speed
        self._noise = noise
        self._random = np.random.default_rng(seed)

    def __call__(self, env: Any) -> np.ndarray:
        action = self._speed * self._controller(env)
        action = action + self._noise * self._random.standard_normal(action.shape)
        return np.clip(action, -1.0, 1.0).astype(np.float32)


def metaworld_controller(env: Any) -> np.ndarray:
    """The action of Meta-World's scripted policy for the task that `env` (a `MetaWorld`) is in."""
    from metaworld.policies import ENV_POLICY_MAP

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that responses are above 1, as they are meant to be
        action = ENV_POLICY_MAP[env.task]().get_action(env.privileged)
    return np.clip(action, -1.0, 1.0)


def dots_controller(env: Dots) -> np.ndarray:
    """Straight to the goal; the other dot is never in the way."""
    return np.clip((env.goal - env.agent) / SPEED, -1.0, 1.0)
