"""A run that is only a folder's worth of numbers, and worlds of dots that are slow or do not work."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from accerl.config import EnvConfig, RunConfig
from accerl.envs.decision import Step
from accerl.envs.dots import Dots
from accerl.types import Observation


def metrics_line(index: int, tasks: tuple[str, ...] = ("red", "blue")) -> dict[str, Any]:
    """A plausible line of `metrics.jsonl`, two seconds after the one before."""
    success = 0.5 + 0.4 * (1 - math.exp(-index / 60)) + 0.02 * math.sin(index)
    return {
        "time": 1.7e9 + 2 * index,
        "wall_s": 2.0 * index,
        "decisions": 320 * index,
        "env_steps": 2400 * index,
        "episodes": 40 * index,
        "updates": 3 * index,
        "version": 3 * index,
        "success": success,
        "success_low": success - 0.04,
        "success_high": success + 0.03,
        "success_by_task": {task: success + 0.03 * (-1) ** place for place, task in enumerate(tasks)},
        "task_probability": {task: 1 / len(tasks) for task in tasks},
        "return_mean": success,
        "decisions_per_s": 160.0 + 10 * math.sin(index / 3),
        "env_steps_per_s": 1200.0 + 80 * math.sin(index / 3),
        "trained_decisions_per_s": 640.0,
        "policy_lag_mean": 8.0 + math.sin(index / 5),
        "policy_lag_max": 14 + index % 3,
        "run_policy_lag_mean": 8.0,
        "run_policy_lag_max": 16.0,
        "discarded_decisions": 0,
        "replay_decisions": 4000,
        "replay_unused": 120,
        "batch_size_mean": 7.6,
        "window_wait_ms": 3.2,
        "learner_busy": 0.93,
        "inference_busy": 0.36,
        "rollout_busy": 0.61,
        "cores_busy": [0.97, 0.94],
        "policy_loss": -0.01,
    }


class FakeRun:
    """As `accerl.runtime.run.Run`: it is `running` for `num_lines` looks at it and then ends in `end`."""

    def __init__(self, config: RunConfig, num_lines: int = 3, end: str = "finished", reason: str = ""):
        self.folder: Path = config.folder
        self.name = config.name
        self.config = config
        self.stopped_within: list[float] = []
        self.saved = [1, 2]
        """Versions of its checkpoints."""
        self.num_lines = num_lines
        self.end = end
        self.reason = reason
        self._looks = 0

    def status(self) -> dict[str, Any]:
        self._looks += 1
        if self._looks == 1:
            return {"state": "starting", "reason": ""}
        line = metrics_line(min(self._looks, self.num_lines) - 1, self.config.env.tasks)
        if self._looks <= self.num_lines:
            return {**line, "state": "running", "reason": ""}
        return {**line, "state": self.end, "reason": self.reason}

    def metrics(self, after: int = 0) -> list[dict[str, Any]]:
        return [metrics_line(index, self.config.env.tasks) for index in range(after, min(self._looks, self.num_lines))]

    def incidents(self) -> list[dict[str, Any]]:
        return [{"time": 1.7e9, "role": "rollout-0", "what": "its process ended", "action": "restarted"}]

    def checkpoints(self) -> list[Path]:
        return [self.folder / "checkpoints" / f"step-{number:08d}" for number in self.saved]

    def stop(self, timeout_s: float = 30.0) -> None:
        self.stopped_within.append(timeout_s)
        self._looks = self.num_lines


class SlowDots(Dots):
    """Each environment step takes 20 ms."""

    def _step(self, action: np.ndarray) -> Step:
        time.sleep(0.02)
        return super()._step(action)


class HalfBrokenDots(Dots):
    """Its second task cannot be started."""

    def reset(
        self, *, seed: int | None = None, options: Mapping[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        if (options or {}).get("task") == "blue":
            raise OSError("the blue paint has dried")
        return super().reset(seed=seed, options=options)


def slow_dots(config: EnvConfig, tasks: tuple[str, ...]) -> Dots:
    return SlowDots(config, tasks)


def half_broken_dots(config: EnvConfig, tasks: tuple[str, ...]) -> Dots:
    return HalfBrokenDots(config, tasks)
