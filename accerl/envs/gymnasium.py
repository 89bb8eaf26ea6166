"""Any gymnasium environment that has a picture, as an `Env`."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from PIL import Image

from accerl.config import ConfigError, EnvConfig, suggest
from accerl.envs.decision import DecisionLoop, Step, chosen_task
from accerl.types import ChunkResult, EnvSpec, Observation

SuccessRule = Callable[[Mapping[str, Any]], bool]
"""Of the `info` of a step."""


class GymnasiumEnv:
    """Gymnasium environments as the tasks of one `Env`.

    - The image is the observation, or the first image of a dict observation, or else what `render()` gives; it is
      resized to a square. `proprio` is the rest of the observation: its float arrays end to end, in gymnasium's order
      and units.
    - Actions in [-1, 1] are scaled to the bounds of a `Box`; for a `Discrete(n)` the interval is cut into n bins.
    - A step succeeds by `success(info)`, else `info["success"]`, else `info["is_success"]`; where there is none of
      these, if it terminates the episode with a positive reward. Success ends the episode.
    - The dense reward is the environment's own.

    Args:
        env: an environment, or one for each task.
        instruction: default: the name of the task in words.
        config: sizes and limits; its `tasks` are not looked at.

    Raises:
        ConfigError: no image, no bounds of the actions, tasks of different shapes, or several cameras.
    """

    def __init__(
        self,
        env: gymnasium.Env | Mapping[str, gymnasium.Env],
        *,
        instruction: str | None = None,
        config: EnvConfig | None = None,
        success: SuccessRule | None = None,
    ) -> None:
        envs = env if isinstance(env, Mapping) else {env.spec.id if env.spec else type(env.unwrapped).__name__: env}
        config = config or EnvConfig(suite="gymnasium", tasks=tuple(envs), steps_per_action=1)
        check_cameras(config.cameras)
        self._tasks = {name: _Task(name, each) for name, each in envs.items()}
        steps_per_decision = config.chunk_length * config.steps_per_action
        limits = [-(-task.max_steps // steps_per_decision) for task in self._tasks.values() if task.max_steps]
        self.spec = EnvSpec(
            tasks=tuple(envs),
            num_cameras=1,
            image_size=config.image_size,
            proprio_dim=_common(self._tasks, "proprio_dim"),
            action_dim=_common(self._tasks, "action_dim"),
            chunk_length=config.chunk_length,
            steps_per_action=config.steps_per_action,
            max_decisions=min([config.max_decisions, *limits]),
            max_env_steps=config.max_env_steps,
        )
        self.task = self.spec.tasks[0]
        self._instruction = instruction
        self._success = success
        self._dense = config.reward == "dense"
        self._loop = DecisionLoop(self.spec)

    def reset(
        self, *, seed: int | None = None, options: Mapping[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        self.task = chosen_task(self.spec, options)
        info = self._tasks[self.task].reset(seed)
        self._loop.start()
        return self._observe(), {**info, "task": self.task}

    def step_chunk(self, actions: np.ndarray, on_step: Callable[[], None] | None = None) -> ChunkResult:
        return self._loop.run(actions, self._step, self._observe, on_step)

    def render(self, size: int) -> np.ndarray:
        self._loop.check_started()
        return self._tasks[self.task].image(size)

    def close(self) -> None:
        for task in self._tasks.values():
            task.env.close()

    def _step(self, action: np.ndarray) -> Step:
        reward, terminated, truncated, info = self._tasks[self.task].step(action)
        if self._success is not None:
            success = bool(self._success(info))
        elif "success" in info or "is_success" in info:
            success = bool(info.get("success", info.get("is_success")))
        else:
            success = terminated and reward > 0
        return Step(reward if self._dense else float(success), terminated or success, truncated, success)

    def _observe(self) -> Observation:
        task = self._tasks[self.task]
        return Observation(
            images=task.image(self.spec.image_size)[None],
            proprio=task.proprio(),
            instruction=self._instruction or _words(self.task),
        )


def make(config: EnvConfig, tasks: tuple[str, ...]) -> GymnasiumEnv:
    """The environments whose gymnasium ids are `tasks`."""
    envs = {}
    for task in tasks:
        try:
            envs[task] = gymnasium.make(task, render_mode="rgb_array", disable_env_checker=True)
        except gymnasium.error.Error as error:
            raise ConfigError(f"env.tasks: gymnasium cannot make {task!r}: {error}") from None
    return GymnasiumEnv(envs, config=config)


def check(tasks: tuple[str, ...], cameras: tuple[str, ...]) -> None:
    """Raises ConfigError at the first task that is not registered, or if there are several cameras."""
    for task in tasks:
        try:
            gymnasium.spec(task)
        except (gymnasium.error.Error, ImportError):
            raise ConfigError(f"env.tasks: unknown task {task!r}; {_suggest_id(task)}") from None
    check_cameras(cameras)


def check_cameras(cameras: tuple[str, ...]) -> None:
    if len(cameras) > 1:
        raise ConfigError(f"env.cameras: gymnasium has one view, not {len(cameras)}; name one camera")


class _Task:
    """One gymnasium environment, and where in its observation the image and the rest are."""

    def __init__(self, name: str, env: gymnasium.Env) -> None:
        self.env = env
        self.max_steps = env.spec.max_episode_steps if env.spec else None
        space = env.observation_space
        self._parts = dict(space.spaces) if isinstance(space, spaces.Dict) else {"": space}
        self._image_key = next((key for key, part in self._parts.items() if _is_image(part)), None)
        if self._image_key is None and env.render_mode != "rgb_array":
            raise ConfigError(f"env.tasks: {name!r} has no image; make it with render_mode='rgb_array'")
        self._vectors = [key for key, part in self._parts.items() if _is_vector(part)]
        self.proprio_dim = sum(int(np.prod(self._parts[key].shape or ())) for key in self._vectors)
        self._action_space = env.action_space
        self.action_dim = _action_dim(name, env.action_space)
        self._observation: Any = None

    def reset(self, seed: int | None) -> dict[str, Any]:
        self._observation, info = self.env.reset(seed=seed)
        return info

    def step(self, action: np.ndarray) -> tuple[float, bool, bool, dict[str, Any]]:
        native = _native_action(self._action_space, action)
        self._observation, reward, terminated, truncated, info = self.env.step(native)
        return float(reward), bool(terminated), bool(truncated), info

    def image(self, size: int) -> np.ndarray:
        frame: Any = self.env.render() if self._image_key is None else self._part(self._image_key)
        frame = np.broadcast_to(frame, (*frame.shape[:2], 3))
        return np.array(Image.fromarray(np.ascontiguousarray(frame)).resize((size, size), Image.Resampling.BOX))

    def proprio(self) -> np.ndarray:
        vectors = [np.asarray(self._part(key), np.float32).ravel() for key in self._vectors]
        return np.concatenate([np.zeros(0, np.float32), *vectors])

    def _part(self, key: str) -> Any:
        return self._observation[key] if isinstance(self._observation, dict) else self._observation


def _is_image(space: spaces.Space) -> bool:
    """Uint8 [height, width, 3 or 1]."""
    return (
        isinstance(space, spaces.Box) and space.dtype == np.uint8 and len(space.shape) == 3 and space.shape[2] in (1, 3)
    )


def _is_vector(space: spaces.Space) -> bool:
    return isinstance(space, spaces.Box) and np.issubdtype(space.dtype, np.floating)


def _action_dim(task: str, space: spaces.Space) -> int:
    if isinstance(space, spaces.Discrete):
        return 1
    if isinstance(space, spaces.Box) and np.isfinite([space.low, space.high]).all():
        return int(np.prod(space.shape))
    raise ConfigError(f"env.tasks: {task!r} has the actions {space}; only Discrete and Box with bounds are supported")


def _native_action(space: spaces.Space, action: np.ndarray) -> Any:
    fraction = (action + 1.0) / 2.0
    if isinstance(space, spaces.Discrete):
        return space.start + min(int(fraction[0] * space.n), space.n - 1)
    assert isinstance(space, spaces.Box)
    return (space.low + fraction.reshape(space.shape) * (space.high - space.low)).astype(space.dtype)


def _common(tasks: Mapping[str, _Task], field: str) -> int:
    (first, value), *others = [(name, getattr(task, field)) for name, task in tasks.items()]
    for name, other in others:
        if other != value:
            raise ConfigError(
                f"env.tasks: {field} is {value} for {first!r} and {other} for {name!r}; choose alike tasks"
            )
    return value


def _words(task: str) -> str:
    """`CartPole-v1` is "cart pole"."""
    name = re.sub(r"-v\d+$", "", task.rpartition("/")[2])
    return " ".join(re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+", name)).lower()


def _suggest_id(task: str) -> str:
    hint = suggest(task, list(gymnasium.registry))
    return hint if hint.startswith("did") else "`gymnasium.pprint_registry()` lists the known ones"
