"""A two-dimensional world of dots in plain numpy: for tests, debugging and tutorials."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from accerl.config import ConfigError, EnvConfig, suggest
from accerl.envs.decision import DecisionLoop, Step, chosen_task, spec_of
from accerl.envs.state import pack_random, unpack_random
from accerl.types import ChunkResult, Observation

COLOURS = {"red": (220, 40, 40), "blue": (40, 80, 220)}
"""Task to the colour of the dot it is about."""
AGENT_COLOUR = (240, 240, 240)
BACKGROUND = 30
SPEED = 0.04
"""Largest displacement along each axis in one environment step; the world is the square [-1, 1]²."""
RADIUS = 0.12
"""Of every dot; the agent has reached one when they touch."""
START = 0.2
"""The agent starts in the square [-START, START]²."""
GOAL_RING = (0.7, 0.85)
"""Distances of the goals from the middle, at least a right angle apart."""


class Dots:
    """A white dot that can move, a red and a blue one that stand still, and the instruction to go to one of them.

    Both tasks show the same scenes, so only the language tells them apart. Touching a dot ends the episode, with
    success if it is the right one. An action is a velocity, `proprio` the agent's position. The dense reward is the
    distance gained towards the goal. There is one view, whatever `config.cameras` calls it.

    Raises:
        ConfigError: an unknown task, or several cameras.
    """

    def __init__(self, config: EnvConfig, tasks: tuple[str, ...] | None = None) -> None:
        tasks = tasks or config.tasks
        check(tasks, config.cameras)
        self.spec = spec_of(config, tasks, proprio_dim=2, action_dim=2)
        self.task = self.spec.tasks[0]
        self.agent = np.zeros(2)
        self.goals = np.zeros((len(COLOURS), 2))
        """In the order of `COLOURS`."""
        self._dense = config.reward == "dense"
        self._loop = DecisionLoop(self.spec)
        self._random = np.random.default_rng()

    @property
    def goal(self) -> np.ndarray:
        """Position of the dot that the instruction names."""
        return self.goals[list(COLOURS).index(self.task)]

    def reset(
        self, *, seed: int | None = None, options: Mapping[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        self.task = chosen_task(self.spec, options)
        if seed is not None:
            self._random = np.random.default_rng(seed)
        self.agent = self._random.uniform(-START, START, 2)
        angle = self._random.uniform(0.0, 2.0 * np.pi)
        angles = np.array([angle, angle + self._random.uniform(0.5, 1.5) * np.pi])
        directions = np.stack([np.cos(angles), np.sin(angles)], axis=1)
        self.goals = self._random.uniform(*GOAL_RING, (2, 1)) * directions
        self._loop.start()
        return self._observe(), {"task": self.task}

    def step_chunk(self, actions: np.ndarray, on_step: Callable[[], None] | None = None) -> ChunkResult:
        return self._loop.run(actions, self._step, self._observe, on_step)

    def render(self, size: int) -> np.ndarray:
        self._loop.check_started()
        image = np.full((size, size, 3), BACKGROUND, np.uint8)
        for position, colour in zip([*self.goals, self.agent], [*COLOURS.values(), AGENT_COLOUR], strict=True):
            _paint_disc(image, position, colour)
        return image

    def close(self) -> None:
        self._loop = DecisionLoop(self.spec)

    def save_state(self) -> dict[str, np.ndarray]:
        return {
            **self._loop.save_state(),
            "task": np.array(self.task),
            "random": pack_random(self._random),
            "agent": self.agent.copy(),
            "goals": self.goals.copy(),
        }

    def load_state(self, state: Mapping[str, np.ndarray]) -> Observation:
        self.task = chosen_task(self.spec, {"task": str(state["task"])})
        self._random = unpack_random(state["random"])
        self._loop.load_state(state)
        self.agent = state["agent"].copy()
        self.goals = state["goals"].copy()
        return self._observe()

    def _step(self, action: np.ndarray) -> Step:
        before = np.linalg.norm(self.goal - self.agent)
        self.agent = np.clip(self.agent + SPEED * action, -1.0, 1.0)
        distances = np.linalg.norm(self.goals - self.agent, axis=1)
        distance = np.linalg.norm(self.goal - self.agent)
        success = bool(distance < 2 * RADIUS)
        reward = float(before - distance) if self._dense else float(success)
        return Step(reward, terminal=bool(distances.min() < 2 * RADIUS), truncated=False, success=success)

    def _observe(self) -> Observation:
        return Observation(
            images=self.render(self.spec.image_size)[None],
            proprio=self.agent.astype(np.float32),
            instruction=f"go to the {self.task} dot",
        )


def check(tasks: tuple[str, ...], cameras: tuple[str, ...]) -> None:
    """Raises ConfigError at the first unknown task, or if there are several cameras."""
    for task in tasks:
        if task not in COLOURS:
            raise ConfigError(f"env.tasks: unknown task {task!r}; {suggest(task, list(COLOURS))}")
    if len(cameras) > 1:
        raise ConfigError(f"env.cameras: dots has one view, not {len(cameras)}; name one camera")


def _paint_disc(image: np.ndarray, position: np.ndarray, colour: tuple[int, int, int]) -> None:
    """Blend a disc with a soft edge, one pixel wide, into the pixels around it; y points up."""
    size = len(image)
    radius = RADIUS * size / 2
    column, row = (1 + position[0]) * size / 2 - 0.5, (1 - position[1]) * size / 2 - 0.5
    top, left = max(0, int(row - radius - 1)), max(0, int(column - radius - 1))
    patch = image[top : int(row + radius + 3), left : int(column + radius + 3)]
    rows, columns = np.ogrid[top : top + patch.shape[0], left : left + patch.shape[1]]
    distance = np.sqrt((rows - row) ** 2 + (columns - column) ** 2)
    cover = np.clip(radius - distance + 0.5, 0.0, 1.0)[..., None]
    patch[:] = patch + cover * (np.asarray(colour) - patch)
