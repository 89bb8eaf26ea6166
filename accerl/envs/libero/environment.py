"""LIBERO (arXiv 2306.03310) as an `Env` of images, proprioception and language."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from accerl.config import EnvConfig
from accerl.envs.decision import DecisionLoop, Step, chosen_task, spec_of
from accerl.envs.libero.simulation import Simulation, theatre
from accerl.envs.libero.suites import CAMERAS, SPLITS, check, init_states, task_names, tasks_of
from accerl.envs.state import pack_random, unpack_random
from accerl.types import ChunkResult, Observation

ACTION_DIM = 7
PROPRIO_DIM = 8


class Libero:
    """Any number of tasks of a suite as one `StatefulEnv`.

    Actions are robosuite's: displacement of the hand, xyz (1 is 5 cm), its rotation (1 is 0.5 rad) and the gripper,
    -1 open to 1 closed, each in [-1, 1]. `proprio` [8] is that of OpenVLA: position of the hand, metres, rotation as
    an axis times an angle, radians, and the two fingers, metres. Images are turned by 180 degrees from OpenGL's, which
    public checkpoints and data sets expect: upright, and mirrored. `render` is not mirrored.

    A task is simulated once on a thread, however many environments are in it: they take turns, and a turn costs less
    than a millisecond. Construct, reset, step, render and close on one thread.

    `options["init_state"]` of `reset` counts the initial states of the split (`env.libero.init_states`), from 0, in
    turn; without it the seed chooses.

    Raises:
        ConfigError: LIBERO is missing; an unknown task or camera.
        RenderingError: no OpenGL.
    """

    def __init__(self, config: EnvConfig, tasks: tuple[str, ...] | None = None) -> None:
        names = task_names(config.suite, tasks or config.tasks)
        check(config.suite, names, config.cameras)
        self.spec = spec_of(config, names, proprio_dim=PROPRIO_DIM, action_dim=ACTION_DIM)
        self.task = names[0]
        self.episode = 0
        """Counts resets."""
        self.parked: dict[str, np.ndarray] | None = None
        self._tasks = tasks_of(config.suite)
        self._cameras = config.cameras
        self._libero = config.libero
        self._loop = DecisionLoop(self.spec)
        self._random = np.random.default_rng()
        self._theatre = theatre()
        self._theatre.join()
        self._closed = False

    @property
    def simulation(self) -> Simulation:
        """Of the present task, with this environment's state; for demonstrators."""
        return self._theatre.enter(self, self._tasks[self.task], self._libero.max_simulations)

    def reset(
        self, *, seed: int | None = None, options: Mapping[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        self.task = chosen_task(self.spec, options)
        if seed is not None:
            self._random = np.random.default_rng(seed)
        split = SPLITS[self._libero.init_states]
        turn = (options or {}).get("init_state")
        number = split[int(self._random.integers(len(split)) if turn is None else turn % len(split))]
        self.parked = None
        state = init_states(self._tasks[self.task])[number]
        still = np.array([0.0] * 6 + [self._libero.settle_gripper])
        self.simulation.reset(state, self._libero.settle_steps, still)
        self._loop.start()
        self.episode += 1
        return self._observe(), {"task": self.task, "init_state": number}

    def step_chunk(self, actions: np.ndarray, on_step: Callable[[], None] | None = None) -> ChunkResult:
        return self._loop.run(actions, self._step, self._observe, on_step)

    def render(self, size: int) -> np.ndarray:
        """The first camera's view, uint8 [size, size, 3], upright and not mirrored."""
        self._loop.check_started()
        return self.simulation.render((self._cameras or CAMERAS)[0], size, reflections=False)

    def close(self) -> None:
        if not self._closed:
            self._theatre.leave(self)
        self._closed = True
        self._loop = DecisionLoop(self.spec)

    def save_state(self) -> dict[str, np.ndarray]:
        own = {"task": np.array(self.task), "random": pack_random(self._random)}
        return {**own, **self._loop.save_state(), **self.simulation.save()}

    def load_state(self, state: Mapping[str, np.ndarray]) -> Observation:
        self.task = chosen_task(self.spec, {"task": str(state["task"])})
        self._random = unpack_random(state["random"])
        self._loop.load_state(state)
        self.parked = None
        self.simulation.load(state)
        return self._observe()

    def _step(self, action: np.ndarray) -> Step:
        success = self.simulation.step(action)
        return Step(float(success), success, False, success)

    def _observe(self) -> Observation:
        simulation = self.simulation
        lag = simulation.as_robosuite_observes() if self._libero.lag else contextlib.nullcontext()
        size = self.spec.image_size
        images = np.empty((len(self._cameras), size, size, 3), np.uint8)
        with lag:
            for index, camera in enumerate(self._cameras):
                samples = None if self._libero.multisampling else 0
                image = simulation.render(camera, size, reflections=self._libero.reflections, samples=samples)
                images[index] = image[:, ::-1]
            proprio = simulation.proprio().astype(np.float32)
        return Observation(images=images, proprio=proprio, instruction=self._tasks[self.task].instruction)
