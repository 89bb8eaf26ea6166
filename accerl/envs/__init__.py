"""Simulators behind the `Env` protocol. Importing this package imports none of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from accerl.config import ConfigError, EnvConfig
from accerl.envs.libero import suites
from accerl.envs.libero.suites import SUITES as LIBERO_SUITES
from accerl.plugins import find_object
from accerl.protocols import Env, Expert
from accerl.types import EnvSpec

__all__ = ["SUITES", "check_expert", "check_tasks", "make_env", "make_expert", "read_spec"]

SUITES = ("metaworld", *LIBERO_SUITES, "dots", "gymnasium")
"""Besides these, a suite is `package.module:function`, called with (EnvConfig, tasks)."""


def make_env(config: EnvConfig, tasks: tuple[str, ...] | None = None) -> Env:
    """The environment of `config`, for `tasks` only if they are given.

    Raises:
        ConfigError: an unknown suite, task or camera; LIBERO is not installed.
        RenderingError: there is no OpenGL, which Meta-World and LIBERO need.
    """
    tasks = tasks or config.tasks
    check_tasks(config, tasks)
    match config.suite:
        case "metaworld":
            from accerl.envs.metaworld import MetaWorld

            return MetaWorld(config, tasks)
        case suite if suite in LIBERO_SUITES:
            from accerl.envs.libero.environment import Libero

            return Libero(config, tasks)
        case "dots":
            from accerl.envs.dots import Dots

            return Dots(config, tasks)
        case "gymnasium":
            from accerl.envs import gymnasium

            return gymnasium.make(config, tasks)
        case _:
            return _function_of(config.suite)(config, tasks)


def read_spec(config: EnvConfig) -> EnvSpec:
    """The facts of such an environment, which is made for it and closed again.

    Raises:
        ConfigError: it cannot be made.
    """
    env = make_env(config)
    spec = env.spec
    env.close()
    return spec


def check_tasks(config: EnvConfig, tasks: tuple[str, ...] | None = None) -> None:
    """Find unknown suites, tasks and cameras without making anything; a suite of your own can check its tasks itself.

    Raises:
        ConfigError: naming the field.
    """
    tasks = tasks or config.tasks
    match config.suite:
        case name if name in LIBERO_SUITES:
            suites.check(name, tasks, config.cameras)
            return
        case "metaworld":
            from accerl.envs import metaworld_tasks as suite
        case "dots":
            from accerl.envs import dots as suite
        case "gymnasium":
            from accerl.envs import gymnasium as suite
        case _:
            _function_of(config.suite)
            return
    suite.check(tasks, config.cameras)


def make_expert(config: EnvConfig, env: Env, *, speed: float = 1.0, noise: float = 0.0, seed: int = 0) -> Expert:
    """The scripted demonstrator of `env`, slowed by `speed` and disturbed by `noise` (see `ScriptedExpert`).

    Raises:
        ConfigError: the suite has none.
    """
    check_expert(config)
    if config.suite in LIBERO_SUITES:
        from accerl.envs.libero.demonstrator.expert import Demonstrator

        return Demonstrator(speed=speed, noise=noise, seed=seed)
    from accerl.envs import experts

    controller = experts.metaworld_controller if config.suite == "metaworld" else experts.dots_controller
    return experts.ScriptedExpert(controller, speed=speed, noise=noise, seed=seed)


def check_expert(config: EnvConfig) -> None:
    """Raises ConfigError if the suite has no scripted demonstrator."""
    if config.suite not in ("metaworld", "dots", *LIBERO_SUITES):
        known = "'metaworld', 'dots' or a LIBERO suite"
        raise ConfigError(f"env.suite: {config.suite!r} has no scripted expert; use {known}")


def _function_of(suite: str) -> Callable[[EnvConfig, tuple[str, ...]], Any]:
    function = find_object(suite, "env.suite", SUITES)
    if not callable(function):
        raise ConfigError(f"env.suite: {suite!r} is no function of (EnvConfig, tasks)")
    return function
