"""The part of `Env.step_chunk` that every simulator shares."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from accerl.config import EnvConfig, suggest
from accerl.types import ChunkResult, EnvSpec, Observation


class Step(NamedTuple):
    """What one environment step gave."""

    reward: float
    terminal: bool
    truncated: bool
    success: bool


class DecisionLoop:
    """Holds each action of a chunk, stops where the episode ends, counts decisions and refuses to go past the end."""

    def __init__(self, spec: EnvSpec) -> None:
        self.num_decisions = 0
        self.num_env_steps = 0
        self._spec = spec
        self._started = False
        self._ended = False

    def start(self) -> None:
        self.num_decisions = self.num_env_steps = 0
        self._started, self._ended = True, False

    def run(
        self,
        actions: np.ndarray,
        step: Callable[[np.ndarray], Step],
        observe: Callable[[], Observation],
        on_step: Callable[[], None] | None,
    ) -> ChunkResult:
        """One decision: `step` for every environment step, then `observe`, once.

        Raises:
            RuntimeError: no episode is going on.
            ValueError: the actions have the wrong shape or are not finite.
        """
        self.check_started()
        if self._ended:
            raise RuntimeError("the episode has ended; call reset() first")
        spec = self._spec
        actions = np.clip(np.asarray(actions, np.float32), -1.0, 1.0)
        if actions.shape != (spec.chunk_length, spec.action_dim):
            raise ValueError(f"actions must be [{spec.chunk_length}, {spec.action_dim}], not {list(actions.shape)}")
        if not np.isfinite(actions).all():
            raise ValueError("actions must be finite")
        reward, num_env_steps, last = 0.0, 0, Step(0.0, False, False, False)
        most = spec.max_env_steps or math.inf
        for action in np.repeat(actions, spec.steps_per_action, axis=0):
            last = step(action)
            reward += last.reward
            num_env_steps += 1
            if on_step is not None:
                on_step()
            if last.terminal or last.truncated or self.num_env_steps + num_env_steps >= most:
                break
        self.num_decisions += 1
        self.num_env_steps += num_env_steps
        at_limit = self.num_decisions >= spec.max_decisions or self.num_env_steps >= most
        truncated = not last.terminal and (last.truncated or at_limit)
        self._ended = last.terminal or truncated
        return ChunkResult(
            observation=observe(),
            reward=reward,
            terminal=last.terminal,
            truncated=truncated,
            success=last.success,
            num_actions=-(-num_env_steps // spec.steps_per_action),
            num_env_steps=num_env_steps,
        )

    def check_started(self) -> None:
        """Raises RuntimeError before the first episode."""
        if not self._started:
            raise RuntimeError("no episode has been started; call reset() first")

    def save_state(self) -> dict[str, np.ndarray]:
        self.check_started()
        counts = {"num_decisions": np.array(self.num_decisions), "num_env_steps": np.array(self.num_env_steps)}
        return {**counts, "ended": np.array(self._ended)}

    def load_state(self, state: Mapping[str, np.ndarray]) -> None:
        self.num_decisions, self.num_env_steps = int(state["num_decisions"]), int(state["num_env_steps"])
        self._started, self._ended = True, bool(state["ended"])


def chosen_task(spec: EnvSpec, options: Mapping[str, Any] | None) -> str:
    """`options["task"]`, or the first task.

    Raises:
        ValueError: it is not one of `spec.tasks`.
    """
    task = (options or {}).get("task", spec.tasks[0])
    if task not in spec.tasks:
        raise ValueError(f"unknown task {task!r}; {suggest(str(task), list(spec.tasks))}")
    return task


def spec_of(config: EnvConfig, tasks: Sequence[str], *, proprio_dim: int, action_dim: int) -> EnvSpec:
    """The facts of a simulator that takes the rest of them from its configuration."""
    return EnvSpec(
        tasks=tuple(tasks),
        num_cameras=len(config.cameras),
        image_size=config.image_size,
        proprio_dim=proprio_dim,
        action_dim=action_dim,
        chunk_length=config.chunk_length,
        steps_per_action=config.steps_per_action,
        max_decisions=config.max_decisions,
        max_env_steps=config.max_env_steps,
    )
