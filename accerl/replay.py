"""Where trajectories wait for the learner: one shard, in memory.

Newest knowledge first: a sample takes the decisions that were trained on the fewest times, so that every decision is
used, the freshest ones soonest; among equals at random, or in the order in which they came where staleness is bounded.
A full shard lets its oldest decisions go once they were used; an unused one is never dropped: `push` says no and the
producer waits. What is sampled stays until the learner has confirmed its update: if the learner dies before, it is
unused again.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from accerl.config import ReplayConfig
from accerl.groups import Groups
from accerl.types import BatchRule, Trajectory


@dataclass(slots=True)
class _Entry:
    trajectory: Trajectory
    uses: int
    place: int
    """Index in the bucket of its number of uses."""


class Replay:
    """One shard. Without a bound on staleness every operation costs O(1) a trajectory that it touches.

    Args:
        groups: holds episodes back until they can be compared with the others of their group.
    """

    def __init__(self, config: ReplayConfig, seed: int = 0, groups: Groups | None = None):
        self._groups = groups
        self._compared: deque[Trajectory] = deque()  # for which there was no room yet
        self._capacity = max(1, config.capacity_decisions // config.num_shards)
        self._max_reuse = config.max_reuse
        self._min_decisions = max(1, config.min_decisions // config.num_shards)
        self._entries: dict[int, _Entry] = {}  # insertion order is age
        self._buckets: list[list[int]] = [[] for _ in range(config.max_reuse)]
        self._lent: dict[int, dict[int, Trajectory]] = {}  # batch to what was first used in it
        self._generator = np.random.default_rng(seed)
        self._next_key = 0
        self.num_decisions = 0
        self.unused_decisions = 0
        self.pushed_decisions = 0
        self.used_decisions = 0
        """Trained on at least once."""
        self.sampled_decisions = 0

    @property
    def discarded_decisions(self) -> int:
        """Decisions that went without ever being trained on."""
        of_groups = self._groups.discarded_decisions if self._groups is not None else 0
        return self.pushed_decisions - self.used_decisions - self.unused_decisions + of_groups

    @property
    def lent_decisions(self) -> int:
        """Decisions first used in batches that were not confirmed yet."""
        return sum(trajectory.num_decisions for lent in self._lent.values() for trajectory in lent.values())

    @property
    def episodes(self) -> list[int]:
        """Numbers of the episodes of which it holds unused or unconfirmed segments."""
        unused = [self._entries[key].trajectory.episode for key in self._buckets[0]]
        return unused + [trajectory.episode for lent in self._lent.values() for trajectory in lent.values()]

    def push(self, trajectory: Trajectory) -> bool:
        """Take ownership; False if there is no room because the oldest decisions have not been used yet.

        Raises:
            ValueError: a trajectory that could never fit.
        """
        if self._groups is None:
            return self._take_in(trajectory)
        if not self._take_in_compared():
            return False
        self._compared.extend(self._groups.add(trajectory))
        self._take_in_compared()
        return True

    def sample(self, num_decisions: int, batch: int = 0) -> Sequence[Trajectory]:
        """Different segments with at least `num_decisions` in all; empty while there are too few.

        Args:
            batch: number of the batch that they are for, which `confirm` names.
        """
        self._take_in_compared()
        if self.pushed_decisions < self._min_decisions or self.num_decisions < num_decisions:
            return ()
        chosen: list[int] = []
        missing = num_decisions
        for bucket in self._buckets:
            for index in self._generator.permutation(len(bucket)):
                if missing <= 0:
                    break
                chosen.append(bucket[index])
                missing -= self._entries[bucket[index]].trajectory.num_decisions
        return self._use(chosen, batch)

    def take(self, num_decisions: int, rule: BatchRule, batch: int = 0) -> Sequence[Trajectory]:
        """Segments that `rule` admits: unused ones as they came, then used ones; as many as there are.

        Up to `num_decisions` (the last segment may go beyond), and all that the rule wants in this batch.
        """
        self._take_in_compared()
        if rule.oldest_version is not None:
            self._let_go_below(rule.oldest_version - 1)
        chosen: list[int] = []
        missing = num_decisions
        for key in self._admitted(rule):
            trajectory = self._entries[key].trajectory
            must = rule.needs_all or _is_older(trajectory, rule.oldest_version)
            if missing > 0 or (must and self._entries[key].uses == 0):
                chosen.append(key)
                missing -= trajectory.num_decisions
        return self._use(chosen, batch)

    def confirm(self, batch: int) -> None:
        """The learner has trained on every batch up to this one."""
        for number in [number for number in self._lent if number <= batch]:
            del self._lent[number]

    def reclaim(self) -> int:
        """What was first used in batches that were never confirmed is unused again; returns its decisions."""
        returned = 0
        for lent in self._lent.values():
            for key, trajectory in lent.items():
                if key in self._entries:
                    self._remove(key)
                self._add(trajectory)
                self.used_decisions -= trajectory.num_decisions
                returned += trajectory.num_decisions
        self._lent.clear()
        return returned

    def _take_in_compared(self) -> bool:
        """Groups that are complete, as far as there is room; whether there was for all."""
        while self._compared and self._take_in(self._compared[0]):
            self._compared.popleft()
        return not self._compared

    def _take_in(self, trajectory: Trajectory) -> bool:
        size = trajectory.num_decisions
        if size > self._capacity:
            raise ValueError(f"replay.capacity_decisions: {self._capacity} a shard cannot hold a segment of {size}")
        while self.num_decisions + size > self._capacity:
            oldest = next(iter(self._entries))
            if self._entries[oldest].uses == 0:
                return False
            self._remove(oldest)
        self._add(trajectory)
        self.pushed_decisions += size
        return True

    def _admitted(self, rule: BatchRule) -> Iterator[int]:
        """Keys that may be in the batch, the least used ones first, in the order in which they came."""
        below = rule.episodes_below
        for bucket in self._buckets[:1] if rule.needs_all else self._buckets:
            for key in sorted(bucket):
                if below is None or self._entries[key].trajectory.episode < below:
                    yield key

    def _use(self, keys: Sequence[int], batch: int) -> list[Trajectory]:
        trajectories = [self._entries[key].trajectory for key in keys]
        for key in keys:
            self._count_use(key, batch)
        self.sampled_decisions += sum(trajectory.num_decisions for trajectory in trajectories)
        return trajectories

    def _count_use(self, key: int, batch: int) -> None:
        entry = self._entries[key]
        if entry.uses == 0:
            self.unused_decisions -= entry.trajectory.num_decisions
            self.used_decisions += entry.trajectory.num_decisions
            self._lent.setdefault(batch, {})[key] = entry.trajectory
        self._leave_bucket(entry)
        entry.uses += 1
        if entry.uses < self._max_reuse:
            self._enter_bucket(key, entry)
        else:
            self.num_decisions -= entry.trajectory.num_decisions
            del self._entries[key]

    def _let_go_below(self, version: int) -> None:
        """Drop used segments with decisions of older versions."""
        for bucket in self._buckets[1:]:
            for key in [key for key in bucket if _is_older(self._entries[key].trajectory, version)]:
                self._remove(key)

    def _add(self, trajectory: Trajectory) -> None:
        entry = _Entry(trajectory, uses=0, place=0)
        self._entries[self._next_key] = entry
        self._enter_bucket(self._next_key, entry)
        self._next_key += 1
        self.num_decisions += trajectory.num_decisions
        self.unused_decisions += trajectory.num_decisions

    def _remove(self, key: int) -> None:
        entry = self._entries.pop(key)
        self._leave_bucket(entry)
        self.num_decisions -= entry.trajectory.num_decisions

    def _enter_bucket(self, key: int, entry: _Entry) -> None:
        bucket = self._buckets[entry.uses]
        entry.place = len(bucket)
        bucket.append(key)

    def _leave_bucket(self, entry: _Entry) -> None:
        bucket = self._buckets[entry.uses]
        last = bucket.pop()
        if entry.place < len(bucket):
            bucket[entry.place] = last
            self._entries[last].place = entry.place


def _is_older(trajectory: Trajectory, version: int | None) -> bool:
    """It holds a decision of a version below `version`."""
    return version is not None and int(trajectory.policy_version.min()) < version
