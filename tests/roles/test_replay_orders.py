"""Every order of the replay against sums made anew from what was pushed; what each order is for."""

from __future__ import annotations

import dataclasses
from collections import Counter
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
SIZES: dict[str, Any] = {"capacity_decisions": CAPACITY, "max_reuse": 3, "min_decisions": 1, "paced": False}
PARTS = {size: trajectory(size) for size in range(1, 7)}
KINDS: tuple[dict[str, Any], ...] = (
    {},
    {"order": "fifo", "max_reuse": 1},
    {"order": "ring"},
    {"max_age_versions": 2},
    {"order": "ring", "max_age_versions": 3},
    {"success_share": 0.5},
    {"order": "ring", "success_share": 0.8, "max_age_versions": 3},
    {"success_share": 0.3, "max_reuse": 1},
)


def segment(size: int, origin: int, version: int = 0, **fields: Any) -> Trajectory:
    versions = np.full(size, version, np.int32)
    return dataclasses.replace(PARTS[size], origin=str(origin), policy_version=versions, **fields)


def sized(**fields: Any) -> ReplayConfig:
    return ReplayConfig(**SIZES | fields)


def shard(**fields: Any) -> Replay:
    return Replay(sized(**fields))


class Accounts(RuleBasedStateMachine):
    """What is pushed, given, confirmed and reclaimed, written down from outside and compared with the counters."""

    @initialize(kind=st.sampled_from(KINDS), seed=st.integers(0, 5))
    def start(self, kind, seed):
        self.config = sized(**kind)
        self.replay = Replay(self.config, seed)
        self.size: dict[str, int] = {}
        self.uses: Counter[str] = Counter()
        self.first_used: dict[str, int] = {}
        self.confirmed = self.batch = self.version = 0

    @rule(size=st.integers(1, 6), behind=st.integers(0, 3), ended=st.booleans(), success=st.booleans())
    def push(self, size, behind, ended, success):
        before = self.replay.num_decisions
        made = segment(size, len(self.size), max(0, self.version - behind), terminal=ended, success=ended and success)
        taken = self.replay.push(made)
        if self.config.order == "ring" or before + size <= CAPACITY:
            assert taken
        if taken:
            self.size[made.origin] = size

    @rule(wanted=st.integers(1, 14), in_order=st.booleans(), later=st.integers(0, 2))
    def give(self, wanted, in_order, later):
        self.batch += 1
        self.version = self.batch = self.batch + later
        held = self.replay.num_decisions
        found = (
            self.replay.take(wanted, BatchRule(), self.batch) if in_order else self.replay.sample(wanted, self.batch)
        )
        sizes = [part.num_decisions for part in found]
        if found and not in_order:
            surplus = self.config.success_share is not None  # a segment too many of either kind
            assert sum(sizes) >= wanted and (surplus or sum(sizes[:-1]) < wanted)
        if not found and self.config.max_age_versions is None:
            assert held < wanted
        chosen = [part.origin for part in found]
        assert len(set(chosen)) == len(chosen)
        if self.config.max_age_versions is not None:
            assert all(part.policy_version.min() >= self.version - self.config.max_age_versions for part in found)
        for origin in chosen:
            if self.uses[origin] == 0:
                self.first_used[origin] = self.batch
            self.uses[origin] += 1
            assert self.uses[origin] <= self.config.max_reuse

    @rule()
    def confirm(self):
        self.replay.confirm(self.batch)
        self.first_used.clear()

    @rule(data=st.data())
    def confirm_some(self, data):
        upto = data.draw(st.integers(0, self.batch))
        self.replay.confirm(upto)
        self.first_used = {origin: batch for origin, batch in self.first_used.items() if batch > upto}

    @rule()
    def reclaim(self):
        assert self.replay.reclaim() == self.sum_of(self.first_used)
        for origin in self.first_used:
            self.uses[origin] = 0
        self.first_used.clear()

    @invariant()
    def everything_is_accounted_for(self):
        if not hasattr(self, "replay"):
            return
        replay = self.replay
        held = list(replay._stock)
        assert replay.num_decisions == sum(entry.num_decisions for entry in held)
        assert replay.unused_decisions == sum(entry.num_decisions for entry in held if entry.uses == 0)
        assert replay.pushed_decisions == sum(self.size.values())
        assert replay.used_decisions == self.sum_of(origin for origin, uses in self.uses.items() if uses)
        assert replay.lent_decisions == self.sum_of(self.first_used)
        gone = replay.discarded_decisions + replay.aged_decisions
        assert replay.pushed_decisions == replay.unused_decisions + replay.used_decisions + gone
        assert replay.discarded_decisions == 0 or self.config.order == "ring"
        assert replay.aged_decisions == 0 or self.config.max_age_versions is not None
        assert {entry.trajectory.origin: entry.uses for entry in held}.items() <= {
            origin: self.uses[origin] for origin in self.size
        }.items()

    def sum_of(self, origins) -> int:
        return sum(self.size[origin] for origin in origins)


def test_every_decision_is_unused_used_discarded_or_aged_whatever_the_order():
    run_state_machine_as_test(Accounts, settings=settings(max_examples=150, stateful_step_count=30))


def origins(found: Any) -> list[str]:
    return [part.origin for part in found]


# --- fifo -------------------------------------------------------------------------------------------------------------


def test_a_fifo_gives_every_decision_once_in_the_order_in_which_it_came():
    replay = shard(order="fifo", max_reuse=1)
    for origin in range(8):
        assert replay.push(segment(2, origin))
    assert origins(replay.sample(5)) == ["0", "1", "2"]
    assert origins(replay.take(2, BatchRule())) == ["3"]
    assert origins(replay.sample(8)) == ["4", "5", "6", "7"]
    assert replay.num_decisions == 0


# --- ring -------------------------------------------------------------------------------------------------------------


def test_a_full_ring_overwrites_the_oldest_and_counts_what_was_never_used():
    replay = shard(order="ring", capacity_decisions=6)
    for origin in range(3):
        assert replay.push(segment(2, origin))
    replay.sample(6)
    assert replay.push(segment(2, 3)) and replay.discarded_decisions == 0
    assert replay.push(segment(4, 4)) and replay.discarded_decisions == 0
    assert replay.push(segment(2, 5)) and replay.discarded_decisions == 2
    assert sorted(origins(replay.sample(6))) == ["4", "5"]


def test_a_ring_draws_a_decision_at_random_and_its_segment_with_it():
    sizes = [1, 2, 3, 6, 4, 4]
    replay = shard(order="ring", max_reuse=10**6)
    for origin, size in enumerate(sizes):
        replay.push(segment(size, origin))
    drawn = Counter(origins(replay.sample(1))[0] for _ in range(6000))
    expected = [6000 * size / sum(sizes) for size in sizes]
    misfit = sum((drawn[str(origin)] - expected[origin]) ** 2 / expected[origin] for origin in range(6))
    assert misfit < 20.5, "chi-square of 5 degrees of freedom is above it once in 1000"


def test_the_second_segment_of_a_batch_is_drawn_from_the_others_as_the_first_was():
    replay = shard(order="ring", max_reuse=10**6)
    for origin, size in enumerate((1, 3, 6)):
        replay.push(segment(size, origin))
    pairs = Counter(tuple(origins(replay.sample(part))[:2]) for part in [7] * 6000)
    chances = {("2", "1"): 6 / 10 * 3 / 4, ("2", "0"): 6 / 10 * 1 / 4, ("1", "2"): 3 / 10 * 6 / 7}
    for pair, chance in chances.items():
        assert abs(pairs[pair] / 6000 - chance) < 4 * (chance * (1 - chance) / 6000) ** 0.5


def test_what_a_dead_learner_had_of_a_ring_comes_back_even_if_it_was_overwritten():
    replay = shard(order="ring", capacity_decisions=4)
    replay.push(segment(4, 0))
    replay.sample(4, batch=3)
    replay.push(segment(4, 1))
    assert replay.reclaim() == 4
    assert sorted(origins(replay.sample(8, batch=4))) == ["0", "1"]
    assert replay.discarded_decisions == 0


# --- age --------------------------------------------------------------------------------------------------------------


def test_what_is_too_old_is_let_go_and_counted_if_it_was_never_used():
    replay = shard(max_age_versions=2)
    for version in range(4):
        replay.push(segment(2, version, version))
    assert not replay.sample(7, batch=3), "version 0 is 3 behind, and the others have 6 decisions"
    assert replay.aged_decisions == 2
    assert sorted(origins(replay.sample(6, batch=3))) == ["1", "2", "3"]
    assert sorted(origins(replay.sample(4, batch=4))) == ["2", "3"]
    assert not replay.sample(5, batch=4)
    assert replay.aged_decisions == 2, "version 1 had been used"
    assert replay.discarded_decisions == 0


def test_a_segment_is_as_old_as_its_oldest_decision():
    replay = shard(max_age_versions=2)
    mixed = dataclasses.replace(segment(3, 0), policy_version=np.array([1, 4, 5], np.int32))
    replay.push(mixed)
    assert not replay.sample(1, batch=4)
    assert replay.aged_decisions == 3


def test_a_pushed_decision_of_a_newer_version_makes_the_others_older():
    replay = shard(max_age_versions=1)
    replay.push(segment(2, 0, 5))
    replay.push(segment(2, 1, 9))
    assert origins(replay.sample(2, batch=3)) == ["1"]


def test_what_becomes_too_old_while_it_is_lent_does_not_come_back_to_be_trained_on():
    replay = shard(max_age_versions=1)
    replay.push(segment(2, 0, 0))
    assert replay.sample(2, batch=0)
    assert replay.reclaim() == 2
    assert not replay.sample(2, batch=5)
    assert replay.aged_decisions == 2


# --- success ----------------------------------------------------------------------------------------------------------


def balanced(share: float, num_successes: int, num_failures: int, **fields: Any) -> Replay:
    replay = shard(success_share=share, capacity_decisions=1000, **fields)
    for number in range(num_successes + num_failures):
        assert replay.push(segment(2, number, terminal=True, success=number < num_successes))
    return replay


@pytest.mark.parametrize("order", ["least_used", "ring"])
def test_the_share_of_successes_is_kept_as_long_as_there_are_enough_of_both(order):
    replay = balanced(0.25, 20, 100, order=order)
    batches = [replay.sample(24, batch) for batch in range(5)]
    decisions = [[part.num_decisions for part in batch if part.success] for batch in batches]
    assert [sum(sizes) for sizes in decisions] == [6] * 5


def test_the_surplus_of_a_whole_segment_is_made_up_for():
    replay = shard(success_share=0.5, capacity_decisions=1000)
    for number in range(60):
        replay.push(segment(6, number, terminal=True, success=number % 2 == 0))
    batches = [replay.sample(7, batch) for batch in range(8)]
    shares = [sum(part.num_decisions for part in batch if part.success) for batch in batches]
    assert abs(sum(shares) - 8 * 3.5) <= 6


def test_where_there_are_too_few_of_one_kind_the_other_fills_the_batch():
    assert sum(part.num_decisions for part in balanced(0.5, 2, 40).sample(40)) == 40
    assert sum(part.num_decisions for part in balanced(0.5, 40, 2).sample(40)) == 40
    assert sum(part.success for part in balanced(1.0, 3, 40).sample(40)) == 3


def test_balanced_batches_keep_to_the_limit_of_uses():
    replay = balanced(0.5, 2, 30, max_reuse=2)
    drawn = Counter(part.origin for batch in range(4) for part in replay.sample(8, batch))
    assert max(drawn.values()) == 2


def test_the_segments_of_an_episode_count_as_successful_from_its_end_on():
    replay = shard(success_share=1.0, max_reuse=9)
    replay.push(segment(2, 7))
    replay.push(segment(2, 8))
    replay.push(segment(2, 7))
    replay.push(segment(2, 7, terminal=True, success=True))
    replay.push(segment(2, 8, terminal=True))
    assert origins(replay.sample(6)) == ["7"] * 3
    assert origins(replay.sample(6)) == ["7"] * 3, "although the others were not used yet"
