"""Faults follow from their seed, every kind comes by turns, and a run that goes on recovers from each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import pytest

from accerl.config import ConfigError
from accerl.runtime import chaos
from accerl.runtime.run import Run
from tests.runtime.test_survival import until, updates


def test_a_plan_follows_from_its_seed_and_has_all_kinds_by_turns():
    first, again, other = (chaos.plan(600.0, 6.0, seed) for seed in (3, 3, 4))
    assert first == again != other
    counts = Counter(fault.kind for fault in first)
    assert set(counts) == set(chaos.KINDS)
    assert max(counts.values()) - min(counts.values()) <= 1
    assert 70 < len(first) < 130
    assert [fault.at_s for fault in first] == sorted(fault.at_s for fault in first)


def test_an_unknown_kind_is_refused_with_a_remedy():
    with pytest.raises(ConfigError, match=r"kinds: there is no 'kill-robot'; .*kill-"):
        chaos.plan(10.0, 1.0, 0, ("kill-robot",))


@pytest.mark.slow
def test_a_run_recovers_from_what_is_done_to_it(start_run: Callable[..., Run]) -> None:
    run = start_run({"limits.max_updates": 5000})
    until(run, lambda: updates(run) >= 3)
    faults = [chaos.Fault(0.0, "kill-replay", 0.0), chaos.Fault(4.0, "slow-rollout", 0.5)]
    outcomes = list(chaos.unleash(run, faults))
    assert {outcome.role for outcome in outcomes} == {"replay-0", "rollout-0"}
    assert all(outcome.recovered_s is not None for outcome in outcomes)
    run.pause()
    until(run, lambda: run.counters()["episodes_in_flight"] == 0, "paused")
    assert run.lost_episodes() == 0
    assert run.pushed_decisions() >= run.counters()["decisions"]
