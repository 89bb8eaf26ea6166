"""The dream audit of one episode as a film for `accerl.notebook.TrajectoryViewer`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from accerl.config import ConfigError, RunConfig
from accerl.envs import make_env
from accerl.notebook.dream_audit import Film
from accerl.types import Trajectory
from accerl_wm import store
from accerl_wm.audit import Audit, audit_trajectory
from accerl_wm.fit import check_run
from accerl_wm.runtime.models import load_model
from accerl_wm.world import WorldModel


def audit_film(trajectory: Trajectory, config: RunConfig, world_model: Path | None) -> Film:
    """Play the actions of a trajectory that kept the simulator's state; see `accerl.notebook.dream_audit.audited`."""
    section = config.imagination
    chosen = world_model or section.world_model
    if chosen is None:
        raise ConfigError("world_model: the run has none; give the viewer one, TrajectoryViewer(run, world_model=...)")
    settings = config.model_copy(update={"imagination": section.model_copy(update={"world_model": Path(chosen)})})
    check_run(settings)
    if world_model is None:
        models = load_model(settings, "observation"), load_model(settings, "reward")
        world = WorldModel(*models, section.device, section.dtype)
    else:
        world = store.load(Path(world_model))
    env: Any = make_env(config.env)
    try:
        return film_of(audit_trajectory(world, env, trajectory, config.env.chunk_length), trajectory)
    finally:
        env.close()


def film_of(found: Audit, trajectory: Trajectory) -> Film:
    """The audit of `trajectory`, imagined above real in each frame."""
    both = replace(
        trajectory,
        images=np.concatenate([found.imagined, found.real], axis=2),
        origin=f"audit of {trajectory.origin}",
        state=None,
    )
    facts = {
        "source": "audit",
        "outcome": "same outcome" if found.same_outcome else "other outcome",
    }
    curves: dict[str, list[float | None]] = {
        "PSNR": [None, *_numbers(found.psnr[1:])],
        "success probability": _numbers(found.imagined_success),
        "judged real": _numbers(found.judged_success),
        "success": _numbers(found.real_success),
        "proprio error": _numbers(found.proprio_error),
    }
    return Film(both, facts, curves)


def _numbers(array: np.ndarray) -> list[float | None]:
    return [round(float(value), 4) for value in array]
