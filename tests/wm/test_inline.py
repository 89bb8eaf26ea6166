"""A run in one process that trains on imagined decisions beside real ones."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import pytest

from accerl.config import ImaginationConfig, LearnerConfig, LimitsConfig, ReplayConfig, RolloutConfig, RunConfig
from accerl.envs import make_env
from accerl.protocols import StatefulEnv
from accerl.runtime.inline import InlineRun
from accerl_wm.frames import FrameBuffer
from accerl_wm.imagination import Imagination
from accerl_wm.inline import InlineImagination
from accerl_wm.oracle import Oracle, OracleReward
from accerl_wm.world import WorldModel
from tests.wm.scenes import DOTS, SPEC, policy


def run(rollout: dict[str, Any] | None = None, **config: Any) -> tuple[InlineRun, InlineImagination, list[Any]]:
    frames = FrameBuffer(chunk_length=2, held_out=0.0)
    world = WorldModel(Oracle(lambda: cast(StatefulEnv, make_env(DOTS))), OracleReward())
    imagining = ImaginationConfig(**{"share": 0.75, "slots": 8, "horizon": 3, "max_reuse": 1, **config})
    source = InlineImagination(Imagination(world, frames, SPEC, imagining, discount=0.99), frames, imagining)
    updates: list[Any] = []
    made = InlineRun(
        RunConfig(
            env=DOTS,
            rollout=RolloutConfig(slots_per_worker=8, keep_state=True, **(rollout or {})),
            replay=ReplayConfig(min_decisions=32, max_reuse=2),
            learner=LearnerConfig(batch_decisions=64, value_warmup_updates=0),
            limits=LimitsConfig(max_updates=4),
        ),
        policy(),
        lambda: make_env(DOTS),
        decisions_per_update=16,
        on_update=updates.append,
        imagination=source,
    )
    return made, source, updates


def test_a_share_of_every_batch_is_imagined_by_the_newest_policy_from_real_starts():
    made, source, updates = run()
    made.run()
    assert len(updates) == 4
    imagined = source.replay.sampled_decisions
    real = made.replay.sampled_decisions
    assert imagined == pytest.approx(4 * 48, abs=4 * 3)
    assert real == pytest.approx(4 * 16, abs=4 * 8)
    assert sum(update["batch_decisions"] for update in updates) == imagined + real
    versions = {episode.policy_version for episode in source.imagination.episodes}
    assert len(versions) > 1
    assert made.replay.pushed_decisions < 32 + 4 * 16 + 2 * 4 * 8  # what was imagined is not counted as collected


def test_with_the_same_seed_parameters_are_the_same():
    states = []
    for _ in range(2):
        made, _, _ = run()
        made.run()
        states.append(made.learner.weights().tensors)
    assert all(np.array_equal(states[0][name].numpy(), states[1][name].numpy()) for name in states[0])


def test_a_bound_on_staleness_which_knows_only_what_is_real_is_refused():
    with pytest.raises(ValueError, match=r"rollout\.max_policy_lag"):
        run({"max_policy_lag": 2, "episodes_per_round": 8})
