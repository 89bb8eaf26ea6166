"""Roles that other distributions bring along, found by their entry points.

One of the group `accerl.checks` is called with the run's configuration before anything starts, and refuses what cannot
work. One of `accerl.roles` gives its kinds of actors by name; their constructors take configuration, number and
`Wiring`, as those of the core do.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from accerl.config import RunConfig
from accerl.plugins import load_extra

ROLES, CHECKS = "accerl.roles", "accerl.checks"


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
        ConfigError: the distribution that brings them is not installed.
    """
    return _load(ROLES)(config) if config.imagination.enabled else {}


def check_extra(config: RunConfig) -> None:
    """Refuse what those roles cannot do; none of them is imported.

    Raises:
        ConfigError: naming the field, the reason and the remedy.
    """
    if config.imagination.enabled:
        _load(CHECKS)(config)


def _load(group: str) -> Any:
    return load_extra(group, "imagination", "imagination.enabled", "accerl[wm]")
