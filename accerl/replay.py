"""Where trajectories wait for the learner: one shard, in memory.

Newest knowledge first: a sample takes the decisions that were trained on the fewest times, at random among equals, so
that every decision is used, the freshest ones soonest. A full shard lets its oldest decisions go once they were used;
an unused one is never dropped: `push` says no and the producer waits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from accerl.config import ReplayConfig
from accerl.types import Trajectory


@dataclass(slots=True)
class _Entry:
    trajectory: Trajectory
    uses: int
    place: int
    """Index in the bucket of its number of uses."""


class Replay:
    """One shard. Every operation costs O(1) a trajectory that it touches."""

    def __init__(self, config: ReplayConfig, seed: int = 0):
        self._capacity = max(1, config.capacity_decisions // config.num_shards)
        self._max_reuse = config.max_reuse
        self._min_decisions = max(1, config.min_decisions // config.num_shards)
        self._entries: dict[int, _Entry] = {}  # insertion order is age
        self._buckets: list[list[int]] = [[] for _ in range(config.max_reuse)]
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
        return self.pushed_decisions - self.used_decisions - self.unused_decisions

    def push(self, trajectory: Trajectory) -> bool:
        """Take ownership; False if there is no room because the oldest decisions have not been used yet.

        Raises:
            ValueError: a trajectory that could never fit.
        """
        size = trajectory.num_decisions
        if size > self._capacity:
            raise ValueError(f"replay.capacity_decisions: {self._capacity} a shard cannot hold a segment of {size}")
        while self.num_decisions + size > self._capacity:
            oldest = next(iter(self._entries))
            if self._entries[oldest].uses == 0:
                return False
            self._remove(oldest)
        entry = _Entry(trajectory, uses=0, place=0)
        self._entries[self._next_key] = entry
        self._enter_bucket(self._next_key, entry)
        self._next_key += 1
        self.num_decisions += size
        self.unused_decisions += size
        self.pushed_decisions += size
        return True

    def sample(self, num_decisions: int) -> Sequence[Trajectory]:
        """Different segments with at least `num_decisions` in all; empty while there are too few."""
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
        trajectories = [self._entries[key].trajectory for key in chosen]
        for key in chosen:
            self._count_use(key)
        self.sampled_decisions += sum(trajectory.num_decisions for trajectory in trajectories)
        return trajectories

    def _count_use(self, key: int) -> None:
        entry = self._entries[key]
        if entry.uses == 0:
            self.unused_decisions -= entry.trajectory.num_decisions
            self.used_decisions += entry.trajectory.num_decisions
        self._leave_bucket(entry)
        entry.uses += 1
        if entry.uses < self._max_reuse:
            self._enter_bucket(key, entry)
        else:
            self.num_decisions -= entry.trajectory.num_decisions
            del self._entries[key]

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
