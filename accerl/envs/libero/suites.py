"""The five suites of LIBERO: their tasks, instructions, initial states and step limits."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from accerl.config import ConfigError, suggest
from accerl.envs.libero.installation import benchmark, quietly

SUITES = ("libero_spatial", "libero_object", "libero_goal", "libero_10", "libero_90")

CAMERAS = ("agentview", "robot0_eye_in_hand")
"""Those that public checkpoints see."""
ALL_CAMERAS = (*CAMERAS, "frontview", "galleryview", "birdview", "sideview", "robot0_robotview")

TRAIN_STATES = range(30)
EVALUATION_STATES = range(30, 50)
"""The fifty initial states of a task are split: success where a policy was trained says little about elsewhere."""

SPLITS = {"train": TRAIN_STATES, "evaluation": EVALUATION_STATES, "all": range(50)}


STEP_LIMITS = {
    "libero_spatial": 220,
    "libero_object": 280,
    "libero_goal": 300,
    "libero_10": 520,
    "libero_90": 400,
}
"""Environment steps of an episode in OpenVLA's evaluation: above the longest demonstration of each suite."""


class Task(NamedTuple):
    """One task of a suite."""

    suite: str
    name: str
    instruction: str
    problem: Path
    """The BDDL file."""


@cache
def tasks_of(suite: str) -> dict[str, Task]:
    """By name, in the order of LIBERO's task ids.

    Raises:
        ConfigError: LIBERO is not installed.
    """
    module, paths = benchmark()
    with quietly():
        known: Any = module.get_benchmark(suite)(task_order_index=0)
    tasks = [known.get_task(index) for index in range(known.get_num_tasks())]
    return {
        task.name: Task(
            suite=suite,
            name=task.name,
            instruction=task.language,
            problem=paths.tasks / task.problem_folder / task.bddl_file,
        )
        for task in tasks
    }


@cache
def init_states(task: Task) -> np.ndarray:
    """The official ones [50, 1 + positions + velocities], float64: time, then MuJoCo's qpos and qvel."""
    module, _ = benchmark()
    number = list(tasks_of(task.suite)).index(task.name)
    with quietly():
        states = module.get_benchmark(task.suite)(task_order_index=0).get_task_init_states(number)
    return np.asarray(states, np.float64)


def with_defaults(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of an `EnvConfig` whose suite is one of `SUITES`: task ids become names, and what is missing is that
    of OpenVLA-OFT's evaluation. What is no value for its field is left for the model to refuse.

    Raises:
        ConfigError: naming the field without its section; LIBERO is asked only where a name must be found.
    """
    suite = str(fields["suite"])
    if suite not in SUITES:
        raise ConfigError(f"suite: {suite!r} is unknown; {suggest(suite, list(SUITES))}")
    defaults = {"image_size": 128, "cameras": CAMERAS, "chunk_length": 8, "steps_per_action": 1}
    filled = {**defaults, "tasks": "all", "max_env_steps": STEP_LIMITS[suite], **fields}
    filled["tasks"] = _named(suite, filled["tasks"])
    if "max_decisions" not in fields:
        limit = STEP_LIMITS[suite] if filled["max_env_steps"] is None else filled["max_env_steps"]
        numbers = [_positive(value) for value in (limit, filled["chunk_length"], filled["steps_per_action"])]
        if all(numbers):
            steps, chunk_length, steps_per_action = numbers
            filled["max_decisions"] = -(-steps // (chunk_length * steps_per_action))
    return filled


def task_names(suite: str, tasks: tuple[str, ...]) -> tuple[str, ...]:
    """Names for `tasks`, each a name, a task id in decimal, or `all`.

    Raises:
        ConfigError: there is no such task.
    """
    known = list(tasks_of(suite))
    names: list[str] = []
    for task in tasks:
        if task == "all":
            names += known
        elif task.isdecimal() and int(task) < len(known):
            names.append(known[int(task)])
        elif task in known:
            names.append(task)
        else:
            near = difflib.get_close_matches(task, known, n=1)
            remedy = f"did you mean {near[0]!r}?" if near else "give a name, or all"
            raise ConfigError(
                f"env.tasks: {task!r} is no task of {suite}, nor an id from 0 to {len(known) - 1}; {remedy}"
            )
    return tuple(dict.fromkeys(names))


def check(suite: str, tasks: tuple[str, ...], cameras: tuple[str, ...]) -> None:
    """Raises ConfigError for an unknown task or camera."""
    task_names(suite, tasks)
    for camera in cameras:
        if camera not in ALL_CAMERAS:
            raise ConfigError(f"env.cameras: {camera!r} is unknown; {suggest(camera, list(ALL_CAMERAS))}")


def _named(suite: str, tasks: Any) -> Any:
    """Names for ids and `all`; full names are not looked up, so that a run's settings load without LIBERO."""
    words = [tasks] if isinstance(tasks, str | int) else tasks
    if not isinstance(words, list | tuple):
        return tasks
    names = tuple(str(word) for word in words)
    if not any(name == "all" or name.isdecimal() for name in names):
        return names
    try:
        return task_names(suite, names)
    except ConfigError as error:
        raise ConfigError(str(error).removeprefix("env.")) from None


def _positive(value: Any) -> int:
    """0 if it is no positive whole number."""
    try:
        return max(0, int(value))
    except (TypeError, ValueError):
        return 0
