"""The replay against a simple model of it: nothing unused is dropped, nothing is used too often, least used first."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from accerl.config import ReplayConfig
from accerl.replay import Replay
from accerl.types import BatchRule, Trajectory
from tests.roles.fakes import trajectory

CAPACITY = 20
PARTS = {size: trajectory(size) for size in range(1, 7)}


def named(size: int, origin: int) -> Trajectory:
    return dataclasses.replace(PARTS[size], origin=str(origin))


class ReplayMachine(RuleBasedStateMachine):
    """Pushes and samples at random. `uses` is the model: origin to number of uses, oldest first."""

    @initialize(max_reuse=st.integers(1, 3), min_decisions=st.integers(1, 12), seed=st.integers(0, 5))
    def start(self, max_reuse, min_decisions, seed):
        config = ReplayConfig(
            capacity_decisions=CAPACITY, max_reuse=max_reuse, min_decisions=min_decisions, paced=False
        )
        self.replay = Replay(config, seed)
        self.max_reuse, self.min_decisions = max_reuse, min_decisions
        self.uses: dict[str, int] = {}
        self.size: dict[str, int] = {}
        self.ever_used: set[str] = set()
        self.sampled = 0

    @rule(size=st.integers(1, 6))
    def push(self, size):
        origin = len(self.size)
        taken = self.replay.push(named(size, origin))
        used = [origin for origin, uses in self.uses.items() if uses > 0]
        while self.held() + size > CAPACITY and used:
            del self.uses[used.pop(0)]
        assert taken == (self.held() + size <= CAPACITY)
        if taken:
            self.uses[str(origin)], self.size[str(origin)] = 0, size

    @rule(wanted=st.integers(1, 14))
    def sample(self, wanted):
        found = self.replay.sample(wanted)
        sizes = [part.num_decisions for part in found]
        if sum(self.size.values()) < self.min_decisions or self.held() < wanted:
            assert not found
            return
        assert sum(sizes) >= wanted > sum(sizes[:-1]), "as many as asked for, and no segment more"
        chosen = [part.origin for part in found]
        assert len(set(chosen)) == len(chosen)
        assert all(origin in self.uses for origin in chosen)
        left = [uses for origin, uses in self.uses.items() if origin not in chosen]
        assert max(self.uses[origin] for origin in chosen) <= min(left, default=self.max_reuse)
        for origin in chosen:
            self.uses[origin] += 1
            self.ever_used.add(origin)
            if self.uses[origin] == self.max_reuse:
                del self.uses[origin]
        self.sampled += sum(sizes)

    @invariant()
    def counters_are_exact(self):
        if not hasattr(self, "replay"):
            return
        assert self.replay.num_decisions == self.held() <= CAPACITY
        assert self.replay.pushed_decisions == sum(self.size.values())
        assert self.replay.unused_decisions == sum(self.size[o] for o, uses in self.uses.items() if uses == 0)
        assert self.replay.used_decisions == sum(self.size[origin] for origin in self.ever_used)
        assert self.replay.sampled_decisions == self.sampled
        assert self.replay.discarded_decisions == 0

    def held(self) -> int:
        return sum(self.size[origin] for origin in self.uses)


def test_the_replay_behaves_like_its_model():
    run_state_machine_as_test(ReplayMachine, settings=settings(max_examples=60, stateful_step_count=30))


def origins(segments: Sequence[Trajectory]) -> set[str]:
    return {segment.origin for segment in segments}


def small(**fields: Any) -> Replay:
    sizes: dict[str, Any] = {"capacity_decisions": 6, "max_reuse": 2, "min_decisions": 1, "paced": False}
    return Replay(ReplayConfig(**sizes | fields))


def test_a_full_replay_says_no_until_something_was_used():
    replay = small()
    assert replay.push(named(3, 0)) and replay.push(named(3, 1))
    assert not replay.push(named(1, 2))
    replay.sample(6)
    assert replay.push(named(1, 2))
    assert replay.num_decisions == 4


@pytest.mark.parametrize("seed", range(4))
def test_an_unused_segment_keeps_its_place_and_nobody_waits_while_younger_ones_were_used(seed: int):
    replay = Replay(ReplayConfig(capacity_decisions=9, max_reuse=9, min_decisions=1, paced=False), seed)
    for origin in range(3):
        assert replay.push(named(3, origin))
    used = {*origins(replay.sample(3)), *origins(replay.sample(3))}
    for origin in (3, 4):
        assert replay.push(named(3, origin))
    assert not replay.push(named(3, 5)), "there are three left, all unused"
    assert origins(replay.sample(9)) == {"0", "1", "2", "3", "4"} - used


def test_nothing_is_sampled_before_enough_has_arrived():
    replay = small(min_decisions=4)
    replay.push(named(3, 0))
    assert not replay.sample(1)
    replay.push(named(1, 1))
    assert replay.sample(1)


def test_decisions_that_were_used_up_are_gone():
    replay = small(max_reuse=1)
    replay.push(named(3, 0))
    assert [found.origin for found in replay.sample(2)] == ["0"]
    assert not replay.sample(1)
    assert replay.num_decisions == 0


def test_the_same_seed_gives_the_same_samples():
    def sampled(seed: int) -> list[str]:
        replay = Replay(ReplayConfig(min_decisions=1), seed)
        for origin in range(20):
            replay.push(named(1, origin))
        return [found.origin for _ in range(6) for found in replay.sample(5)]

    assert sampled(3) == sampled(3) != sampled(4)


def test_shards_share_the_capacity():
    replay = small(capacity_decisions=12, num_shards=4)
    assert replay.push(named(3, 0))
    assert not replay.push(named(1, 1))


def test_a_segment_that_could_never_fit_is_refused():
    with pytest.raises(ValueError, match=r"replay\.capacity_decisions: 3 a shard cannot hold a segment of 4"):
        small(num_shards=2).push(named(4, 0))


# --- bounded staleness ------------------------------------------------------------------------------------------------


def versioned(size: int, version: int, episode: int = 0) -> Trajectory:
    versions = np.arange(version, version + size, dtype=np.int32)
    return dataclasses.replace(PARTS[size], policy_version=versions, episode=episode, origin=str(episode))


def held(*trajectories: Trajectory, max_reuse: int = 1) -> Replay:
    replay = Replay(ReplayConfig(capacity_decisions=CAPACITY, max_reuse=max_reuse, min_decisions=10**6))
    for each in trajectories:
        assert replay.push(each)
    return replay


def taken(segments: Sequence[Trajectory]) -> list[int]:
    return [segment.episode for segment in segments]


def test_segments_are_taken_as_they_came_and_as_many_as_there_are():
    replay = held(*(versioned(2, 0, episode) for episode in range(4)))
    assert taken(replay.take(3, BatchRule(), batch=0)) == [0, 1]
    assert taken(replay.take(100, BatchRule(), batch=0)) == [2, 3]
    assert taken(replay.take(1, BatchRule(), batch=0)) == []


def test_what_would_be_too_old_later_is_taken_beyond_the_size():
    replay = held(versioned(2, 5, 0), versioned(2, 3, 1), versioned(2, 5, 2), versioned(3, 2, 3))
    assert taken(replay.take(1, BatchRule(oldest_version=4), batch=0)) == [0, 1, 3]
    assert taken(replay.take(0, BatchRule(oldest_version=5), batch=0)) == []
    assert taken(replay.take(0, BatchRule(oldest_version=6), batch=0)) == [2]


def test_used_segments_that_are_too_old_are_let_go_and_unused_ones_are_not():
    replay = held(versioned(2, 0, 0), versioned(2, 1, 1), max_reuse=3)
    assert taken(replay.take(2, BatchRule(oldest_version=-9), batch=0)) == [0]
    assert taken(replay.take(9, BatchRule(oldest_version=1), batch=1)) == [1, 0], "used ones after the unused"
    assert taken(replay.take(9, BatchRule(oldest_version=2), batch=2)) == [1]
    assert replay.discarded_decisions == 0


def test_a_round_has_its_own_episodes_only():
    replay = held(*(versioned(1, 0, episode) for episode in (5, 1, 4, 0)), max_reuse=2)
    assert taken(replay.take(0, BatchRule(episodes_below=4, needs_all=True), batch=0)) == [1, 0]
    assert taken(replay.take(9, BatchRule(episodes_below=4, needs_all=True), batch=0)) == [], "nothing is used again"
    assert taken(replay.take(9, BatchRule(episodes_below=8, needs_all=True), batch=1)) == [5, 4]


# --- a learner that dies ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("max_reuse", [1, 2])
def test_what_was_taken_and_not_confirmed_is_unused_again(max_reuse):
    replay = held(*(versioned(2, 0, episode) for episode in range(3)), max_reuse=max_reuse)
    for batch in range(3):
        replay.take(2, BatchRule(episodes_below=batch + 1), batch=batch)
    assert replay.unused_decisions == 0
    replay.confirm(0)
    assert sorted(set(replay.episodes)) == [1, 2]
    assert replay.reclaim() == 4
    assert replay.unused_decisions == 4
    assert replay.used_decisions == 2
    assert replay.num_decisions == (4 if max_reuse == 1 else 6)
    assert sorted(taken(replay.take(4, BatchRule(), batch=3))) == [1, 2]
    assert replay.reclaim() == 4
    replay.take(4, BatchRule(), batch=9)
    replay.confirm(9)
    assert replay.reclaim() == 0
    assert replay.discarded_decisions == 0


def test_a_batch_waits_for_its_share_of_fresh_decisions():
    replay = small(capacity_decisions=64, max_reuse=4, paced=True, min_decisions=8)
    for number in range(2):
        replay.push(named(4, number))
    assert replay.sample(8)
    assert replay.sample(8)
    assert not replay.sample(8), "half of the uses are left; in a flow of two new ones a batch it would be more"
    replay.push(named(2, 2))
    assert "2" in origins(replay.sample(8))
    assert not replay.sample(8)


def test_a_paced_batch_is_of_what_came_last():
    """With 4 uses a decision, batches of 16 and segments of 3, the decisions of the last 16 are enough for a batch."""
    replay = small(capacity_decisions=1000, max_reuse=4, paced=True, min_decisions=16)
    oldest = []
    for number in range(400):
        replay.push(named(3, number))
        while given := replay.sample(16):
            oldest.append(3 * (number + 1 - min(map(int, origins(given)))))
    assert len(oldest) == pytest.approx(400 * 3 * 4 / 18, rel=0.05), "every decision four times, batches ragged"
    assert np.quantile(oldest, 0.9) <= 24


def test_a_batch_of_fresh_decisions_waits_for_nothing():
    replay = small(capacity_decisions=64, max_reuse=1, paced=True)
    replay.push(named(4, 0))
    replay.push(named(4, 1))
    assert replay.sample(4, batch=0)
    assert replay.sample(4, batch=1)
    replay.reclaim()
    assert replay.sampled_decisions == 0
    assert replay.sample(4, batch=2), "what a dead learner had taken is fresh again"


def test_samples_are_lent_too():
    replay = Replay(ReplayConfig(capacity_decisions=CAPACITY, min_decisions=1))
    replay.push(named(4, 0))
    assert replay.sample(4, batch=7)
    assert replay.reclaim() == 4
    assert replay.sample(4, batch=8)
    replay.confirm(8)
    assert replay.reclaim() == 0


def test_workers_wait_while_too_much_is_unused_and_go_on_when_some_of_it_was_used():
    replay = Replay(ReplayConfig(capacity_decisions=100, max_unused=10, max_reuse=3, min_decisions=1, paced=False))
    assert [replay.push(named(4, origin)) for origin in range(4)] == [True, True, True, False]
    assert replay.unused_decisions == 12 and replay.discarded_decisions == 0
    replay.sample(4)
    assert replay.unused_decisions == 8 and replay.push(named(4, 3)) and not replay.push(named(4, 4))


def test_a_shard_that_is_never_full_does_not_grow_with_what_went_through_it():
    replay = small(max_reuse=1)
    for origin in range(1000):
        assert replay.push(named(3, origin))
        assert replay.sample(3)
        replay.confirm(0)
    assert replay.num_decisions == 0 and len(replay._stock._used) < 100
