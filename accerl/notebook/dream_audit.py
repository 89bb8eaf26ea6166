"""The dream audit as a film: what other distributions make of an episode's actions, beside what happened."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from accerl.config import ConfigError, RunConfig
from accerl.plugins import load_extra
from accerl.types import Trajectory

GROUP = "accerl.audits"


class Film(NamedTuple):
    """A trajectory to look at whose frames show two worlds, the imagined one above the simulator."""

    trajectory: Trajectory
    facts: Mapping[str, Any]
    """In place of some of `accerl.notebook.strip.facts_of`."""
    curves: Mapping[str, list[float | None]]
    """A number for each frame."""


def audited(trajectory: Trajectory, config: RunConfig | None, world_model: Path | None) -> Film:
    """Play the trajectory's actions in the simulator and in a world model.

    Args:
        config: of the run that the trajectory is from.
        world_model: a folder or the name of a shipped one; None: the one that the run imagines with.

    Raises:
        ConfigError: what is missing for that, and how to get it.
    """
    if trajectory.is_imagined:
        raise ConfigError("audit: this episode was imagined; choose a real one, whose actions can be played in both")
    if config is None:
        raise ConfigError("audit: needs the run that the episode is from; give the run to the viewer")
    if trajectory.state is None:
        raise ConfigError("audit: the simulator's state was not kept; train with rollout.keep_state = true")
    return load_extra(GROUP, "dream", "audit", "accerl[wm]")(trajectory, config, world_model)
