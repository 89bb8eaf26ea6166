"""One Meta-World task in MuJoCo: its physics, its pictures, and its complete state."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np

from accerl.envs import rendering
from accerl.envs.metaworld_tasks import FREE_CAMERAS, INSTRUCTIONS

rendering.choose_backend()  # before MuJoCo is imported, which otherwise looks for a screen

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import mujoco
    from metaworld.env_dict import ALL_V3_ENVIRONMENTS

HAND_CENTRE = np.array([0.0, 0.6865, 0.32375])
HAND_REACH = np.array([0.525, 0.3385, 0.37625])
"""Middle and half width (metres) of the space in which Meta-World lets the hand move."""

VISIBLE_GROUPS = (0, 1, 2)
"""MuJoCo's default; Meta-World keeps its collision shapes in group 4."""

ARM_GROUP = 5
"""The arm is moved there and drawn in films only: it has most of the polygons, and it hides what the gripper does."""

ARM = (
    *("pedestal", "head", "right_arm_base_link", "right_l0", "right_l1", "right_l2", "right_l3", "right_l4"),
    *("right_l5", "right_l6", "right_hand"),
)

LAYOUT = ("body_pos", "body_quat", "site_pos")
"""Arrays of the model that Meta-World changes, at a reset, to place objects and goals."""

SAME = 1e-9
"""Two states of the physics that differ by less are one."""


class Simulator:
    """A Meta-World task on a stage that it shares with the other simulators of this task on this thread."""

    def __init__(self, task: str) -> None:
        self.layout: dict[str, np.ndarray] | None = None  # kept by the stage while another simulator is on it
        self.privileged = np.zeros(39)
        self._stage = _stage(task)
        self._stage.enter(self)
        env = self._stage.new_env()
        env._set_task_called = True
        env._freeze_rand_vec = False  # a new goal at each reset,
        env.seeded_rand_vec = True  # drawn from env.np_random
        env._partially_observable = False
        env.__dict__.pop("sawyer_observation_space", None)  # computed while the goal was hidden, which left it zero
        env.max_path_length = np.inf  # `max_decisions` limits an episode
        self._env = env
        self.reset(np.random.default_rng(0))  # gives Meta-World the attributes that `load_state` does not: live views

    def reset(self, random: np.random.Generator) -> None:
        self._stage.enter(self)
        self._env.np_random = random
        self._env.reset()
        # Meta-World's reset moves objects last and observes them where they were before.
        mujoco.mj_forward(self._env.model, self._env.data)
        self._env._get_obs()  # twice, because an observation carries the one before it
        self.privileged = self._env._get_obs()

    def step(self, action: np.ndarray) -> tuple[float, bool]:
        """Reward and success of one environment step."""
        self._stage.enter(self)
        self.privileged, reward, _, _, info = self._env.step(action)
        return float(reward), bool(info["success"])

    def proprio(self) -> np.ndarray:
        position = (self.privileged[:3] - HAND_CENTRE) / HAND_REACH
        return np.append(position, 2.0 * self.privileged[3] - 1.0).astype(np.float32)

    def render(self, camera: str, size: int, *, film: bool) -> np.ndarray:
        self._stage.enter(self)
        return self._stage.view(size, film).render(self._env.data, self._camera(camera))

    def close(self) -> None:
        self._env.close()
        self._stage.leave(self)

    def save_state(self) -> dict[str, np.ndarray]:
        self._stage.enter(self)
        env = self._env
        physics = get_state(env.model, env.data)
        layout = {f"model.{name}": getattr(env.model, name).copy() for name in LAYOUT}
        attributes = {f"env.{name}": np.array(value) for name, value in vars(env).items() if _is_own_number(value)}
        return {"physics": physics, "privileged": self.privileged.copy(), **layout, **attributes}

    def load_state(self, state: Mapping[str, np.ndarray]) -> None:
        self._stage.enter(self)
        env = self._env
        for name, value in state.items():
            owner, _, attribute = name.partition(".")
            if owner == "env":
                setattr(env, attribute, value.copy() if value.ndim else value.item())
            elif owner == "model":
                getattr(env.model, attribute)[:] = value
        self.privileged = state["privileged"].copy()
        set_state(env.model, env.data, state["physics"])

    def _camera(self, name: str) -> mujoco.MjvCamera:
        camera = mujoco.MjvCamera()
        if name in FREE_CAMERAS:
            camera.lookat[:], camera.distance, camera.azimuth, camera.elevation = FREE_CAMERAS[name]
        else:
            camera.type = mujoco.mjtCamera.mjCAMERA_FIXED
            camera.fixedcamid = self._env.model.camera(name).id
        return camera


class _Stage:
    """The compiled model of a task (50 MB) and the views of it (36 MB each).

    The model holds the layout of the simulator that is on the stage; `enter` exchanges it with that of the one before.
    """

    def __init__(self, task: str) -> None:
        env_class = ALL_V3_ENVIRONMENTS[task]
        model = env_class().model
        for geom in range(model.ngeom):
            if model.body(model.geom_bodyid[geom]).name in ARM:
                model.geom_group[geom] = ARM_GROUP

        outcomes: list[np.ndarray] = []

        class OnStage(env_class):
            def _initialize_simulation(self) -> tuple[mujoco.MjModel, mujoco.MjData]:
                return model, mujoco.MjData(model)

            def _reset_hand(self, steps: int = 50) -> None:
                """250 physics steps, twice a reset, before anything is placed: not again if the first two are alike."""
                if len(outcomes) == 2 and np.abs(outcomes[0] - outcomes[1]).max() < SAME:
                    set_state(self.model, self.data, outcomes[1])
                    steps = 0
                super()._reset_hand(steps=steps)
                if len(outcomes) < 2:
                    outcomes.append(get_state(self.model, self.data))

        self.task = task
        self.num_simulators = 0
        self._env_class = OnStage
        self._model = model
        self._empty = self._layout()
        self._on_stage: Simulator | None = None
        self._views: dict[tuple[int, bool], rendering.View] = {}

    def new_env(self) -> Any:
        return self._env_class()

    def enter(self, simulator: Simulator) -> None:
        if self._on_stage is simulator:
            return
        if self._on_stage is not None:
            self._on_stage.layout = self._layout()
        for name, value in (simulator.layout or self._empty).items():
            getattr(self._model, name)[:] = value
        self._on_stage = simulator

    def leave(self, simulator: Simulator) -> None:
        """The last one to leave frees the stage."""
        if self._on_stage is simulator:
            self._on_stage = None
        self.num_simulators -= 1
        if self.num_simulators == 0:
            for view in self._views.values():
                view.close()
            del _stages()[self.task]

    def view(self, size: int, film: bool) -> rendering.View:
        if (size, film) not in self._views:
            groups = (*VISIBLE_GROUPS, ARM_GROUP) if film else VISIBLE_GROUPS
            sites = "the mark" in INSTRUCTIONS[self.task]
            samples = 4 if film else 0
            self._views[size, film] = rendering.View(
                self._model, size, samples=samples, groups=groups, sites=sites, without=rendering.PLAIN
            )
        return self._views[size, film]

    def _layout(self) -> dict[str, np.ndarray]:
        return {name: getattr(self._model, name).copy() for name in LAYOUT}


_thread = threading.local()


def _stages() -> dict[str, _Stage]:
    """This thread's, by task."""
    if not hasattr(_thread, "stages"):
        _thread.stages = {}
    return _thread.stages


def _stage(task: str) -> _Stage:
    stages = _stages()
    if task not in stages:
        stages[task] = _Stage(task)
    stages[task].num_simulators += 1
    return stages[task]


def get_state(model: mujoco.MjModel, data: mujoco.MjData) -> np.ndarray:
    """Everything that the next physics step depends on."""
    physics = np.empty(mujoco.mj_stateSize(model, mujoco.mjtState.mjSTATE_INTEGRATION))
    mujoco.mj_getState(model, data, physics, mujoco.mjtState.mjSTATE_INTEGRATION)
    return physics


def set_state(model: mujoco.MjModel, data: mujoco.MjData, physics: np.ndarray) -> None:
    """Go back to there, and compute what follows from it, such as positions in the world."""
    mujoco.mj_setState(model, data, physics, mujoco.mjtState.mjSTATE_INTEGRATION)
    mujoco.mj_forward(model, data)
    # Again, because the forward pass has overwritten the solver's warm start, which is part of the state.
    mujoco.mj_setState(model, data, physics, mujoco.mjtState.mjSTATE_INTEGRATION)


def _is_own_number(value: Any) -> bool:
    """A number, or an array that is not a view into MuJoCo's memory."""
    if not isinstance(value, np.ndarray):
        return isinstance(value, bool | int | float | np.generic)
    while isinstance(value.base, np.ndarray):
        value = value.base
    return value.base is None
