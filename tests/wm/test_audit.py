"""The dream audit on `dots`, of the simulator itself and of a model that is wrong."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import cast

import numpy as np
import pytest
import torch

from accerl.config import RolloutConfig
from accerl.envs import make_env
from accerl.policy_server import LocalClient
from accerl.protocols import StatefulEnv
from accerl.rollout import RolloutWorker
from accerl.types import EpisodePlan, Trajectory
from accerl_wm.audit import Audit, audit, picture
from accerl_wm.carriers import Frames
from accerl_wm.frames import cut_start, of_trajectory
from accerl_wm.oracle import Oracle, OracleReward
from accerl_wm.world import WorldModel
from tests.wm.scenes import DOTS, Gathered, server


def dots() -> StatefulEnv:
    return cast(StatefulEnv, make_env(DOTS))


@pytest.fixture(scope="module")
def real() -> Trajectory:
    gathered = Gathered([EpisodePlan(task="red", seed=1)])
    config = RolloutConfig(slots_per_worker=1, keep_state=True)
    worker = RolloutWorker("real", dots, config, LocalClient(server()), gathered, gathered, seed=0)
    asyncio.run(worker.run())
    return gathered.trajectories[0]


def audited(trajectory: Trajectory, world: WorldModel, decision: int) -> Audit:
    start = cut_start(of_trajectory(trajectory), decision, world.history, chunk_length=2)
    assert trajectory.action is not None
    return audit(world, dots(), start, list(trajectory.action[decision:]))


@pytest.mark.parametrize("decision", [0, 2])
def test_the_simulator_passes_its_own_audit_and_repeats_what_was_seen(decision, real):
    found = audited(real, WorldModel(Oracle(dots), OracleReward()), decision)
    assert np.array_equal(found.real, real.images[decision:])
    assert np.array_equal(found.imagined, found.real)
    assert (found.psnr == 100).all() and not found.proprio_error.any()
    assert np.array_equal(found.imagined_success, found.real_success) and found.same_outcome


class Darker:
    """Sees two decisions back, and everything a level darker than it was."""

    history = 2

    def predict(self, past: Frames, actions: torch.Tensor) -> Frames:
        return Frames(images=past.images[:, -1] - 1, proprio=past.proprio[:, -1] + 0.5)


class Sure:
    def predict(self, frames: Frames, instructions) -> torch.Tensor:
        return torch.ones(len(frames))


def test_errors_and_success_are_those_of_each_decision(real, tmp_path):
    still = replace(real, action=np.zeros_like(real.action))
    found = audited(still, WorldModel(Darker(), Sure()), 0)
    levels = np.arange(len(found.psnr))
    assert found.psnr[1:] == pytest.approx(20 * np.log10(255 / levels[1:]), abs=1e-3)
    assert found.proprio_error == pytest.approx(0.5 * levels, abs=1e-6)
    assert not found.real_success.any() and found.imagined_success.all() and not found.same_outcome
    picture([found, found], tmp_path / "audit.png")
    assert (tmp_path / "audit.png").stat().st_size > 5000


def test_without_the_simulators_state_there_is_nothing_to_compare_with(real):
    with pytest.raises(ValueError, match=r"rollout\.keep_state"):
        audited(replace(real, state=None), WorldModel(Darker(), Sure()), 0)
