"""A LIBERO task in robosuite: its physics, its pictures, its complete state, and how environments take turns on it."""

from __future__ import annotations

import contextlib
import threading
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

import numpy as np

from accerl.envs import rendering
from accerl.envs.libero.installation import benchmark, hidden_egl_device, prepare_robosuite, quietly
from accerl.envs.libero.suites import Task

rendering.choose_backend()  # before MuJoCo is imported, which otherwise looks for a screen
benchmark()
prepare_robosuite()
with quietly(), hidden_egl_device():
    import mujoco
    import robosuite.utils.transform_utils as transforms
    from libero.libero.envs.env_wrapper import ControlEnv
    from robosuite.utils.errors import RandomizationError
    from robosuite.utils.observables import Observable, sensor

from accerl.envs.libero.physics import LeanPhysics  # noqa: E402 - imports MuJoCo

LAYOUT_SEED = 0
"""Of the fixtures, which LIBERO moves by up to 2 cm at a reset and leaves out of its initial states."""

KINEMATICS = (
    *("xpos", "xquat", "xmat", "xipos", "ximat", "geom_xpos", "geom_xmat", "site_xpos", "site_xmat"),
    *("cam_xpos", "cam_xmat", "light_xpos", "light_xdir"),
)
"""What MuJoCo draws and robosuite observes; after a step it is one physics step (2 ms) older than the positions."""

VISIBLE_GROUPS = (1, 2)
"""robosuite keeps its collision shapes in group 0."""

LAGGED = (*KINEMATICS, "qpos")
"""What robosuite's own observations are made from."""
OBSERVABLE = "accerl"


class Occupant(Protocol):
    """An environment that takes turns on a simulation."""

    parked: dict[str, np.ndarray] | None
    """Its state while it is not on a simulation."""


class Simulation:
    """One task, compiled (1 to 2 s, about 0.9 GB with its pictures); a step is one of robosuite's, 1/20 s.

    robosuite's observations are off, because they cost more than the physics: positions are read from MuJoCo, pictures
    are drawn when they are asked for.
    """

    def __init__(self, task: Task):
        self.task = task
        self.occupant: Occupant | None = None
        with quietly(), _random_numbers(LAYOUT_SEED):
            control = ControlEnv(
                bddl_file_name=str(task.problem),
                use_camera_obs=False,
                has_offscreen_renderer=False,
                ignore_done=True,
                hard_reset=False,
            )
            self._lagged: dict[str, np.ndarray] = {}
            rate = control.env.control_freq
            keep = self._lag_sensor(control.sim.data._data)
            self._clock = Observable(OBSERVABLE, keep, sampling_rate=rate)
            control.env.add_observable(self._clock)
            np.random.seed(LAYOUT_SEED)
            sim = control.sim
            sim.reset = lambda: (type(sim).reset(sim), sim.forward())  # as after loading: the solver starts from it
            _reset(control.env)
        self.robosuite: Any = control.env
        LeanPhysics(sim)
        for name in self.robosuite.observation_names - {OBSERVABLE}:
            for attribute in ("enabled", "active"):
                self.robosuite.modify_observable(name, attribute, False)
        self.model: mujoco.MjModel = self.robosuite.sim.model._model
        self.data: mujoco.MjData = self.robosuite.sim.data._data
        robot = self.robosuite.robots[0]
        self._controller = robot.controller
        self._gripper = robot.gripper
        self.hand_site = self.model.site(self._gripper.important_sites["grip_site"]).id
        self.hand_body = self.model.body(robot.robot_model.eef_name).id
        self.fingers = [self.model.joint(name).qposadr[0] for name in self._gripper.joints]
        self._views: dict[tuple[int, bool, int | None], rendering.View] = {}
        self._settled: dict[tuple[bytes, int], dict[str, np.ndarray]] = {}
        self._start = self.save()

    def reset(self, init_state: np.ndarray, settle_steps: int, still: np.ndarray) -> None:
        """What a hard reset with the layout's seed and LIBERO's `set_init_state` give, in a hundredth of the time.

        Then `settle_steps` steps of the action `still`; how they end is kept for the next time.
        """
        key = init_state.tobytes() + still.tobytes(), settle_steps
        if key not in self._settled:
            self._set_init_state(init_state)
            for _ in range(settle_steps):
                self.step(still)
            self._settled[key] = self.save()
        self.load(self._settled[key])

    def _set_init_state(self, init_state: np.ndarray) -> None:
        self.load(self._start)
        model, data = self.model, self.data
        data.time = init_state[0]
        data.qpos[:] = init_state[1 : 1 + model.nq]
        data.qvel[:] = init_state[1 + model.nq : 1 + model.nq + model.nv]
        mujoco.mj_forward(model, data)
        self.robosuite._check_success()
        self.robosuite._post_process()
        self.robosuite._update_observables(force=True)

    def step(self, action: np.ndarray) -> bool:
        """Whether the goal is reached now."""
        return bool(self.robosuite.step(action)[2])

    @contextlib.contextmanager
    def as_robosuite_observes(self) -> Iterator[None]:
        """With the positions that robosuite's own observations show: of its sampling clock, not of now."""
        fresh = {name: getattr(self.data, name).copy() for name in self._lagged}
        self._show(self._lagged)
        try:
            yield
        finally:
            self._show(fresh)

    def proprio(self) -> np.ndarray:
        """Position of the hand [3], metres; its rotation as an axis times an angle [3]; the two fingers [2], metres."""
        rotation = transforms.quat2axisangle(self.data.xquat[self.hand_body][[1, 2, 3, 0]])
        return np.concatenate([self.data.site_xpos[self.hand_site], rotation, self.data.qpos[self.fingers]])

    def render(self, camera: str, size: int, *, reflections: bool, samples: int | None = None) -> np.ndarray:
        """What `camera` sees, uint8 [size, size, 3], upright; the same pixels as robosuite's `sim.render`."""
        key = size, reflections, samples
        if key not in self._views:
            without = () if reflections else ("reflection",)
            self._views[key] = rendering.View(self.model, size, samples=samples, groups=VISIBLE_GROUPS, without=without)
        view = mujoco.MjvCamera()
        view.type = mujoco.mjtCamera.mjCAMERA_FIXED
        view.fixedcamid = self.model.camera(camera).id
        return self._views[key].render(self.data, view)

    def save(self) -> dict[str, np.ndarray]:
        physics = np.empty(mujoco.mj_stateSize(self.model, mujoco.mjtState.mjSTATE_INTEGRATION))
        mujoco.mj_getState(self.model, self.data, physics, mujoco.mjtState.mjSTATE_INTEGRATION)
        state = {"physics": physics, "site_rgba": self.model.site_rgba.copy()}
        state |= {f"kinematics.{name}": getattr(self.data, name).copy() for name in KINEMATICS}
        state |= {f"controller.{name}": np.array(value) for name, value in _numbers(self._controller)}
        state |= {f"lagged.{name}": value.copy() for name, value in self._lagged.items()}
        state["clock"] = np.array([self._clock._time_since_last_sample, self._clock._sampled], float)
        return state | {"gripper": np.array(self._gripper.current_action, float)}

    def load(self, state: Mapping[str, np.ndarray]) -> None:
        """Continue from `state`, which any simulation of this task has saved."""
        for name, value in state.items():
            owner, _, attribute = name.partition(".")
            if owner == "controller":
                setattr(self._controller, attribute, value.copy() if value.ndim else value.item())
        self._gripper.current_action = state["gripper"].copy()
        self.model.site_rgba[:] = state["site_rgba"]
        mujoco.mj_setState(self.model, self.data, state["physics"], mujoco.mjtState.mjSTATE_INTEGRATION)
        mujoco.mj_forward(self.model, self.data)
        # Again, because the forward pass has overwritten the solver's warm start, which is part of the state.
        mujoco.mj_setState(self.model, self.data, state["physics"], mujoco.mjtState.mjSTATE_INTEGRATION)
        self._show({name: state[f"kinematics.{name}"] for name in KINEMATICS})
        self._lagged = {name: state[f"lagged.{name}"].copy() for name in LAGGED}
        self._clock._time_since_last_sample, self._clock._sampled = float(state["clock"][0]), bool(state["clock"][1])

    def _show(self, arrays: Mapping[str, np.ndarray]) -> None:
        for name, value in arrays.items():
            getattr(self.data, name)[:] = value

    def _lag_sensor(self, data: mujoco.MjData) -> Any:
        """Keeps what robosuite's observations would see, whenever its sampling clock says so."""

        @sensor(modality=OBSERVABLE)
        def keep(_: Any) -> float:
            self._lagged = {name: getattr(data, name).copy() for name in LAGGED}
            return 0.0

        return keep

    def close(self) -> None:
        for view in self._views.values():
            view.close()
        self._views.clear()
        self.robosuite.close()


class Theatre:
    """The simulations of one thread, and who is on each. The one that was not needed for the longest goes first."""

    def __init__(self) -> None:
        self._simulations: OrderedDict[Task, Simulation] = OrderedDict()
        self._num_users = 0

    def join(self) -> None:
        self._num_users += 1

    def leave(self, occupant: Occupant) -> None:
        """The last one to leave frees the simulations."""
        self._vacate(occupant)
        self._num_users -= 1
        if self._num_users == 0:
            while self._simulations:
                self._drop()

    def enter(self, occupant: Occupant, task: Task, max_simulations: int) -> Simulation:
        """The simulation of `task` with the state of `occupant`, who is on it from now on."""
        if task not in self._simulations:
            while len(self._simulations) >= max_simulations:
                self._drop()
            self._simulations[task] = Simulation(task)
        self._simulations.move_to_end(task)
        simulation = self._simulations[task]
        if simulation.occupant is not occupant:
            self._vacate(occupant)
            self._park(simulation)
            if occupant.parked is not None:
                simulation.load(occupant.parked)
                occupant.parked = None
            simulation.occupant = occupant
        return simulation

    def _vacate(self, occupant: Occupant) -> None:
        for simulation in self._simulations.values():
            if simulation.occupant is occupant:
                simulation.occupant = None

    def _drop(self) -> None:
        _, simulation = self._simulations.popitem(last=False)
        self._park(simulation)
        simulation.close()

    @staticmethod
    def _park(simulation: Simulation) -> None:
        if simulation.occupant is not None:
            simulation.occupant.parked = simulation.save()
            simulation.occupant = None


_thread = threading.local()


def theatre() -> Theatre:
    """This thread's: a GL context belongs to the thread that made it."""
    if not hasattr(_thread, "theatre"):
        _thread.theatre = Theatre()
    return _thread.theatre


@contextlib.contextmanager
def _random_numbers(seed: int) -> Iterator[None]:
    """LIBERO draws from numpy's global generator; afterwards it is as it was."""
    state = np.random.get_state()
    np.random.seed(seed)
    try:
        yield
    finally:
        np.random.set_state(state)


def _reset(env: Any) -> None:
    """As LIBERO's own `reset`, which tries again when things could not be placed, and for ever when all else fails."""
    while True:
        try:
            env.reset()
            return
        except RandomizationError:
            continue


def _numbers(thing: Any) -> Iterator[tuple[str, Any]]:
    """The attributes of `thing` that are numbers or arrays of them."""
    for name, value in vars(thing).items():
        if isinstance(value, bool | int | float | np.generic) or (
            isinstance(value, np.ndarray) and value.dtype.kind in "biuf"
        ):
            yield name, value
