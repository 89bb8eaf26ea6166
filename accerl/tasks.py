"""Dynamic weighted resampling: tasks that fail often are played more often (paper eq. 11)."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any

import numpy as np

from accerl.config import TaskConfig
from accerl.types import Episode

MAX_FAILURES = 3
"""Failures of a task's environment, with no episode between them, after which the task is given up."""


class TaskSampler:
    r"""$P(k) \propto w_k$ with $w_k = \sum_{last\ W\ episodes\ of\ k} (1 - success) + \epsilon$, over all workers."""

    def __init__(self, tasks: Sequence[str], config: TaskConfig, seed: int = 0):
        self.tasks = tuple(tasks)
        self.epsilon = config.epsilon
        """May be changed at any time."""
        self._outcomes: dict[str, deque[bool]] = {task: deque(maxlen=config.window) for task in tasks}
        self._failures = dict.fromkeys(tasks, 0)
        self._generator = np.random.default_rng(seed)
        self._broken = dict.fromkeys(tasks, 0)

    @property
    def broken(self) -> dict[str, int]:
        """Failures of each task's environment since its last episode, or for good."""
        return dict(self._broken)

    @broken.setter
    def broken(self, counts: dict[str, int]) -> None:
        self._broken.update(counts)

    @property
    def quarantined(self) -> tuple[str, ...]:
        """Tasks whose environment kept failing; they are not drawn any more."""
        return tuple(task for task in self.tasks if self._broken[task] >= MAX_FAILURES)

    def next_task(self) -> str:
        """Draw a task.

        Raises:
            RuntimeError: every task is in quarantine.
        """
        weights = np.array(list(self._weights().values()))
        if not weights.any():
            raise RuntimeError("every task is in quarantine")
        return self.tasks[self._generator.choice(len(self.tasks), p=weights / weights.sum())]

    def fail(self, task: str) -> bool:
        """Count a failure of a task's environment; whether the task is given up for it."""
        self._broken[task] += 1
        return self._broken[task] == MAX_FAILURES

    def report(self, episode: Episode) -> None:
        """Count a finished episode."""
        if self._broken[episode.task] < MAX_FAILURES:
            self._broken[episode.task] = 0
        outcomes = self._outcomes[episode.task]
        if len(outcomes) == outcomes.maxlen:
            self._failures[episode.task] -= not outcomes[0]
        outcomes.append(episode.success)
        self._failures[episode.task] += not episode.success

    def probabilities(self) -> dict[str, float]:
        """P(k) now; all 0 when every task is in quarantine."""
        weights = self._weights()
        total = sum(weights.values()) or 1.0
        return {task: weight / total for task, weight in weights.items()}

    def state_dict(self) -> dict[str, Any]:
        """JSON-compatible."""
        return {
            "outcomes": {task: list(map(int, outcomes)) for task, outcomes in self._outcomes.items()},
            "generator": self._generator.bit_generator.state,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for task, outcomes in state["outcomes"].items():
            if task in self._outcomes:
                self._outcomes[task].clear()
                self._outcomes[task].extend(map(bool, outcomes))
                self._failures[task] = sum(not success for success in self._outcomes[task])
        self._generator.bit_generator.state = state["generator"]

    def _weights(self) -> dict[str, float]:
        given_up = self.quarantined
        return {task: 0.0 if task in given_up else self._failures[task] + self.epsilon for task in self.tasks}
