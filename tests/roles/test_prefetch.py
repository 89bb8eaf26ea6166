"""Packing segments into a batch, and the thread that does so ahead of the learner."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch

from accerl.config import LearnerConfig
from accerl.packing import pack
from accerl.prefetch import MicroBatch, Prefetcher
from accerl.types import Batch, BatchRule, Trajectory
from tests.roles.fakes import INSTRUCTIONS, trajectory

OPEN = trajectory(3, seed=1, first_step=4)
ENDED = trajectory(2, seed=2, terminal=True, instruction=INSTRUCTIONS[1], num_actions=np.array([2, 1], np.int32))
CUT = trajectory(1, seed=3, truncated=True)


def packed(*parts: Trajectory, time_limit_bootstraps: bool = True) -> Batch:
    return pack(parts, chunk_length=2, time_limit_bootstraps=time_limit_bootstraps)


# --- pack -------------------------------------------------------------------------------------------------------------


def test_decisions_come_first_and_then_what_bootstraps_the_open_segments():
    batch = packed(OPEN, ENDED, CUT)
    assert batch.num_decisions == 6
    assert len(batch.observations) == 8
    expected = [OPEN.images[:3], ENDED.images[:2], CUT.images[:1], OPEN.images[3:], CUT.images[1:]]
    assert np.array_equal(batch.observations.images.numpy(), np.concatenate(expected))
    expected = [OPEN.proprio[:3], ENDED.proprio[:2], CUT.proprio[:1], OPEN.proprio[3:], CUT.proprio[1:]]
    assert np.array_equal(batch.observations.proprio.numpy(), np.concatenate(expected))
    assert batch.observations.episode_step.tolist() == [4, 5, 6, 0, 1, 0, 7, 1]
    red, blue = INSTRUCTIONS
    assert batch.observations.instructions == [red, red, red, blue, blue, red, red, red]


def test_what_belongs_to_a_decision_keeps_the_order_of_the_segments():
    batch = packed(OPEN, ENDED, CUT)
    for name, of_batch in {
        "log_prob": batch.log_prob,
        "value": batch.behaviour_value,
        "reward": batch.reward,
        "policy_version": batch.policy_version,
    }.items():
        assert np.array_equal(of_batch.numpy(), np.concatenate([getattr(p, name) for p in (OPEN, ENDED, CUT)])), name
    tokens = np.concatenate([part.blob["tokens"] for part in (OPEN, ENDED, CUT)])
    assert np.array_equal(batch.blob["tokens"].numpy(), tokens)
    assert batch.lengths.tolist() == [3, 2, 1]


def test_only_executed_actions_are_in_the_mask():
    mask = packed(OPEN, ENDED).mask
    assert mask.int().tolist() == [[1, 1, 1, 1]] * 4 + [[1, 1, 0, 0]]


def test_a_time_limit_bootstraps_or_counts_as_a_terminal_state():
    assert packed(OPEN, ENDED, CUT).terminal.tolist() == [False, True, False]
    as_failure = packed(OPEN, ENDED, CUT, time_limit_bootstraps=False)
    assert as_failure.terminal.tolist() == [False, True, True]
    assert len(as_failure.observations) == 7
    assert torch.equal(as_failure.observations.images[6:], torch.from_numpy(OPEN.images[3:]))


def test_a_batch_of_ended_segments_has_nothing_to_bootstrap():
    batch = packed(ENDED)
    assert len(batch.observations) == batch.num_decisions == 2


def test_a_batch_shares_no_memory_with_the_replay():
    batch = packed(CUT)
    assert not np.shares_memory(batch.reward.numpy(), CUT.reward)
    assert not np.shares_memory(batch.observations.images.numpy(), CUT.images)


# --- the thread -------------------------------------------------------------------------------------------------------


class Source:
    """Gives one-decision trajectories whose reward is their number; waits or fails when told to.

    As a stream it gives one at a time, under the rules in turn, the last of which stays.
    """

    def __init__(
        self, available: int = 10**6, fail_at: int | None = None, rules: Sequence[BatchRule] = (BatchRule(),)
    ) -> None:
        self.num_sampled = 0
        self.asked: list[int] = []
        self.batches: list[int] = []
        self._available = available
        self._fail_at = fail_at
        self._rules = list(rules)
        self._idle = threading.Event()

    def sample(self, num_decisions: int, batch: int, timeout_s: float) -> Sequence[Trajectory]:
        self.asked.append(num_decisions)
        self.batches.append(batch)
        if self.num_sampled == self._fail_at:
            raise ConnectionError("the replay is gone")
        if self.num_sampled == self._available:
            self._idle.wait(0.01)
            return ()
        return self._give(num_decisions)

    def rule(self, batch: int, timeout_s: float) -> BatchRule:
        return self._rules.pop(0) if len(self._rules) > 1 else self._rules[0]

    def take(self, num_decisions: int, rule: BatchRule, batch: int, timeout_s: float) -> Sequence[Trajectory]:
        self.asked.append(num_decisions)
        self.batches.append(batch)
        if self.num_sampled == self._available or not (num_decisions or rule.needs_all):
            self._idle.wait(0.01)
            return ()
        return self._give(1)

    def confirm(self, batch: int) -> None:
        raise AssertionError("only the learner knows")

    def _give(self, num: int) -> Sequence[Trajectory]:
        first = self.num_sampled + 1
        self.num_sampled += num
        return [
            trajectory(1, reward=np.array([number], np.float32), terminal=number % 2 == 0, episode=number)
            for number in range(first, first + num)
        ]


def prefetcher(source: Source, depth: int = 2, micro: int = 7, **options: Any) -> Prefetcher:
    config = LearnerConfig(batch_decisions=7, micro_batch_decisions=micro, prefetch=depth)
    return Prefetcher(source, lambda parts: pack(parts, chunk_length=2), config, **options)


def got(micro: MicroBatch | None) -> list[float]:
    assert micro is not None and micro.batch is not None
    return micro.batch.reward.tolist()


def test_batches_come_in_the_order_in_which_they_were_sampled():
    source = Source()
    ready = prefetcher(source, first_version=3)
    batches = [ready.get(timeout_s=10) for _ in range(3)]
    assert [got(batch)[0] for batch in batches] == [1, 8, 15]
    assert all(batch is not None and batch.is_last for batch in batches)
    ready.close()
    assert set(source.asked) == {7}
    assert source.batches[:3] == [3, 4, 5]


def test_no_more_than_its_depth_is_made_ahead():
    source = Source()
    ready = prefetcher(source, depth=3)
    for taken in (1, 2, 3):
        got(ready.get(timeout_s=10))
        assert source.num_sampled <= 7 * (taken + 3 + 1), "those ready and the one that waits to be put"
    ready.close()


def test_without_a_batch_in_time_there_is_none():
    ready = prefetcher(Source(available=7))
    assert got(ready.get(timeout_s=10))[0] == 1
    assert ready.get(timeout_s=0.02) is None
    ready.close()


def test_an_error_of_the_source_is_raised_by_get_after_what_was_ready():
    ready = prefetcher(Source(fail_at=14), depth=5)
    assert [got(ready.get(timeout_s=10))[0] for _ in range(2)] == [1, 8]
    with pytest.raises(ConnectionError, match="the replay is gone"):
        ready.get(timeout_s=10)
    ready.close()


@pytest.mark.parametrize("source", [Source(), Source(available=0), Source(fail_at=0)])
def test_closing_ends_the_thread_whatever_it_is_doing(source):
    before = threading.active_count()
    ready = prefetcher(source)
    ready.close()
    assert threading.active_count() == before
    num_asked = len(source.asked)
    ready.close()
    assert len(source.asked) == num_asked


# --- streams ----------------------------------------------------------------------------------------------------------


def test_micro_batches_come_as_soon_as_they_are_full_and_the_last_one_closes_the_batch():
    ready = prefetcher(Source(available=5), micro=3, streams=True)
    first = ready.get(timeout_s=10)
    assert got(first) == [1, 2, 3]
    assert first is not None and not first.is_last
    assert first.episodes == (2,)
    assert ready.get(timeout_s=0.05) is None, "two are there, a micro-batch is three, a batch seven"
    ready.close()

    ready = prefetcher(Source(), micro=3, streams=True)
    micros = [ready.get(timeout_s=10) for _ in range(6)]
    assert [len(got(micro)) for micro in micros] == [3, 3, 1] * 2
    assert [micro is not None and micro.is_last for micro in micros] == [False, False, True] * 2
    ready.close()


def test_a_batch_stays_open_until_its_rule_says_that_nothing_is_missing():
    playing, done = BatchRule(oldest_version=0, is_complete=False), BatchRule(oldest_version=0)
    source = Source(rules=[playing] * 9 + [done])
    ready = prefetcher(source, streams=True)
    first, second = ready.get(timeout_s=10), ready.get(timeout_s=10)
    assert got(first) == [1, 2, 3, 4, 5, 6, 7]
    assert first is not None and not first.is_last
    assert second == MicroBatch(batch=None, is_last=True, episodes=())
    assert source.asked[:10] == [7, 6, 5, 4, 3, 2, 1, 0, 0, 0], "beyond its size it takes only what must be in it"
    ready.close()


def test_a_starved_batch_closes_with_what_is_there():
    rules = [BatchRule(oldest_version=0)] * 3 + [BatchRule(oldest_version=0, is_starved=True)]
    ready = prefetcher(Source(available=3, rules=rules), streams=True)
    micro = ready.get(timeout_s=10)
    assert got(micro) == [1, 2, 3]
    assert micro is not None and micro.is_last
    ready.close()


def test_a_round_is_one_batch_whatever_its_size():
    playing = BatchRule(episodes_below=9, needs_all=True, is_complete=False)
    done = BatchRule(episodes_below=9, needs_all=True)
    ready = prefetcher(Source(available=9, rules=[playing] * 8 + [done, playing]), micro=4, streams=True)
    micros = [ready.get(timeout_s=10) for _ in range(3)]
    assert [len(got(micro)) for micro in micros] == [4, 4, 1]
    assert [micro is not None and micro.is_last for micro in micros] == [False, False, True]
    assert ready.get(timeout_s=0.05) is None
    ready.close()


def test_a_round_that_was_lost_is_said_to_be_empty():
    ready = prefetcher(Source(available=0, rules=[BatchRule(episodes_below=9, needs_all=True)]), streams=True)
    assert ready.get(timeout_s=10) == MicroBatch(batch=None, is_last=True, episodes=())
    ready.close()
