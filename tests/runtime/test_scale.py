"""Processes of each kind are added and removed while a run goes on; nothing is lost."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from accerl.config import ConfigError
from accerl.runtime.run import Run
from tests.runtime.test_run import wait_for

StartRun = Callable[..., Run]
EACH_USED_ONCE = {
    "rollout.max_policy_lag": 6,
    "rollout.episodes_per_round": 48,
    "rollout.slots_per_worker": 8,
    "replay.max_reuse": 1,
    "replay.capacity_decisions": 4096,
}


def test_workers_of_each_kind_come_and_go_and_every_decision_is_trained_on(start_run: StartRun) -> None:
    run = start_run(EACH_USED_ONCE)
    wait_for(run, lambda status: status.get("updates", 0) >= 3)
    assert run.scale(rollout=+1, inference=+1, replay=+1) == {"rollout": 2, "inference": 2, "replay": 2}
    at_work(run, num_workers=2, num_services=2, num_shards=2)
    assert run.scale(rollout=-1, inference=-1, replay=-1) == {"rollout": 1, "inference": 1, "replay": 1}
    at_work(run, num_workers=1, num_services=1, num_shards=1)

    with pytest.raises(ConfigError, match="rollout=-1 would leave none of 1; keep one"):
        run.scale(rollout=-1)
    with pytest.raises(ConfigError, match="rolout cannot be scaled while running; did you mean 'rollout'"):
        run.scale(rolout=1)

    run.pause()
    wait_for(run, lambda _: is_accounted_for(run))
    assert run.incidents() == []
    assert run.metrics()[-1]["run_policy_lag_max"] <= 6


def is_accounted_for(run: Run) -> bool:
    """Nothing is played, and between two steps of the learner every decision is counted in one place, and only there;
    a moment after a step the shards do not know of it yet.
    """
    health = run.health()
    counted = health["trained_decisions"] + health["replay_unused"] + health["replay_lent"]
    assert health["discarded_decisions"] == 0
    return not health["episodes_in_flight"] and counted == health["decisions"]


def at_work(run: Run, **counts: int) -> None:
    """Returns when there are that many, and updates are made with them."""
    wait_for(run, lambda status: all(status.get(name) == count for name, count in counts.items()))
    before = run.status()["updates"]
    wait_for(run, lambda status: status["updates"] >= before + 3)


@pytest.mark.parametrize(
    "mode",
    [pytest.param("sync", marks=pytest.mark.slow), "one_step_off", pytest.param("barrier", marks=pytest.mark.slow)],
)
def test_the_other_modes_keep_their_bounds_on_the_same_roles(start_run: StartRun, mode: str) -> None:
    run = start_run({"mode": mode, "rollout.slots_per_worker": 8, "rollout.num_workers": 2, "replay.max_reuse": 1})
    wait_for(run, lambda status: status.get("updates", 0) >= 6)
    run.stop()
    line = run.metrics()[-1]
    assert line["run_policy_lag_max"] <= {"sync": 0, "one_step_off": 1, "barrier": 0}[mode]
    assert line["discarded_decisions"] == 0
    assert run.incidents() == []
