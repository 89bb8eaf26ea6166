"""Meta-World's fifty manipulation tasks (metaworld 3, MuJoCo) as an `Env` of images, proprioception and language."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from accerl.config import EnvConfig
from accerl.envs.decision import DecisionLoop, Step, chosen_task, spec_of
from accerl.envs.metaworld_simulator import Simulator
from accerl.envs.metaworld_tasks import FREE_CAMERAS, INSTRUCTIONS, check
from accerl.envs.state import pack_random, unpack_random
from accerl.types import ChunkResult, Observation

DENSE_REWARD_SCALE = 0.1
"""Meta-World's own rewards lie in [0, 10] a step."""


class MetaWorld:
    """Any number of Meta-World tasks as one `StatefulEnv`; the simulator of a task is made at its first reset.

    Actions are Meta-World's: displacement of the hand, xyz, and gripper effort. `proprio` is what a real arm would
    know: the hand's position, scaled to [-1, 1] over its space, and the gripper's opening, -1 (closed) to 1.

    A GL context belongs to the thread that made it: construct, reset, step, render and close on one thread. All
    objects on a thread share the model and the views of a task, so sixteen of them cost little more memory than one.

    Raises:
        ConfigError: an unknown task or camera.
        RenderingError: no OpenGL.
    """

    def __init__(self, config: EnvConfig, tasks: tuple[str, ...] | None = None) -> None:
        tasks = tasks or config.tasks
        check(tasks, config.cameras)
        self.spec = spec_of(config, tasks, proprio_dim=4, action_dim=4)
        self.task = self.spec.tasks[0]
        self._cameras = config.cameras
        self._dense = config.reward == "dense"
        self._loop = DecisionLoop(self.spec)
        self._random = np.random.default_rng()
        self._simulators: dict[str, Simulator] = {}

    @property
    def privileged(self) -> np.ndarray:
        """The simulator's state as Meta-World's scripted experts take it [39]."""
        self._loop.check_started()
        return self._simulator.privileged

    def reset(
        self, *, seed: int | None = None, options: Mapping[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        self.task = chosen_task(self.spec, options)
        if seed is not None:
            self._random = np.random.default_rng(seed)
        self._simulator.reset(self._random)
        self._loop.start()
        return self._observe(), {"task": self.task}

    def step_chunk(self, actions: np.ndarray, on_step: Callable[[], None] | None = None) -> ChunkResult:
        return self._loop.run(actions, self._step, self._observe, on_step)

    def render(self, size: int) -> np.ndarray:
        """The first camera's view with the whole arm, smoothed, uint8 [size, size, 3]."""
        self._loop.check_started()
        return self._simulator.render((self._cameras or tuple(FREE_CAMERAS))[0], size, film=True)

    def close(self) -> None:
        for simulator in self._simulators.values():
            simulator.close()
        self._simulators.clear()
        self._loop = DecisionLoop(self.spec)

    def save_state(self) -> dict[str, np.ndarray]:
        own = {"task": np.array(self.task), "random": pack_random(self._random)}
        return {**own, **self._loop.save_state(), **self._simulator.save_state()}

    def load_state(self, state: Mapping[str, np.ndarray]) -> Observation:
        self.task = chosen_task(self.spec, {"task": str(state["task"])})
        self._random = unpack_random(state["random"])
        self._loop.load_state(state)
        self._simulator.load_state(state)
        return self._observe()

    def _step(self, action: np.ndarray) -> Step:
        reward, success = self._simulator.step(action)
        return Step(DENSE_REWARD_SCALE * reward if self._dense else float(success), success, False, success)

    def _observe(self) -> Observation:
        simulator = self._simulator
        size = self.spec.image_size
        images = np.zeros((len(self._cameras), size, size, 3), np.uint8)
        for image, camera in zip(images, self._cameras, strict=True):
            image[:] = simulator.render(camera, size, film=False)
        return Observation(images=images, proprio=simulator.proprio(), instruction=INSTRUCTIONS[self.task])

    @property
    def _simulator(self) -> Simulator:
        """Of the present task."""
        if self.task not in self._simulators:
            self._simulators[self.task] = Simulator(self.task)
        return self._simulators[self.task]
