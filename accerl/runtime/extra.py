"""Roles that other distributions bring along, found by their entry points of the group `accerl.roles`.

An entry point is called with the run's configuration. It checks what concerns it, and gives its kinds of actors by
name; their constructors take configuration, number and `Wiring`, as those of the core do.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib.metadata import entry_points
from typing import Any, NamedTuple

from accerl.config import ConfigError, RunConfig

GROUP = "accerl.roles"


class ExtraKind(NamedTuple):
    """A kind of actors."""

    actor: Any
    """A subclass of `accerl.runtime.actors.role.Role`."""
    count: int
    gpus: float = 0.0
    """Of each."""
    observes: bool = False
    """It has a method `observe(trajectory)`, which is shown each real one."""
    is_replay: bool = False
    """It is a `ReplayActor`, for what is imagined."""


def extra_kinds(config: RunConfig) -> Mapping[str, ExtraKind]:
    """Those that the configuration asks for.

    Raises:
        ConfigError: the distribution that brings them is not installed, or what concerns them does not fit.
    """
    if not config.imagination.enabled:
        return {}
    return _find("imagination", "accerl[wm]")(config)


def _find(name: str, distribution: str) -> Callable[[RunConfig], Mapping[str, ExtraKind]]:
    for point in entry_points(group=GROUP):
        if point.name == name:
            return point.load()
    raise ConfigError(f"{name}.enabled: needs pip install '{distribution}'")
