"""`dots` with tasks whose simulator is broken."""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from accerl.config import EnvConfig
from accerl.envs.dots import Dots
from accerl.types import ChunkResult, Observation


class Fragile(Dots):
    """No episode of `blue` starts."""

    def reset(
        self, *, seed: int | None = None, options: Mapping[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        if options and options["task"] == "blue":
            raise OSError("the simulator of blue is broken")
        return super().reset(seed=seed, options=options)


class Brittle(Dots):
    """Every episode starts, and none gets any further."""

    def step_chunk(self, actions: np.ndarray, on_step: Callable[[], None] | None = None) -> ChunkResult:
        raise OSError("the simulator is brittle")


class Deadly(Dots):
    """The tasks `hang`, `seize` and `crash` do that to the process; the others are `red`."""

    def reset(
        self, *, seed: int | None = None, options: Mapping[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        self._fate = options["task"] if options else "red"
        match self._fate:
            case "hang":
                time.sleep(600)
            case "seize":
                ctypes.PyDLL(None).sleep(600)  # and keeps Python's lock
        return super().reset(seed=seed)

    def step_chunk(self, actions: np.ndarray, on_step: Callable[[], None] | None = None) -> ChunkResult:
        if self._fate == "crash":
            ctypes.string_at(0)
        return super().step_chunk(actions, on_step)


def fragile(config: EnvConfig, tasks: tuple[str, ...]) -> Fragile:
    return Fragile(config, tasks)


def brittle(config: EnvConfig, tasks: tuple[str, ...]) -> Brittle:
    return Brittle(config, tasks)


def deadly(config: EnvConfig, tasks: tuple[str, ...]) -> Deadly:
    return Deadly(config, ("red",))
