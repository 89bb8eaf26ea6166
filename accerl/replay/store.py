"""One shard: what it holds, what it has lent, and what became of everything that was pushed.

    pushed = unused + used at least once + discarded + aged

`replay.order` says which segments a sample takes. A full shard lets its oldest decisions go once they were used; an
unused one is never dropped: `push` says no and the producer waits (a ring overwrites it, and counts it as discarded).
What is sampled stays until the learner has confirmed its update: if the learner dies before, it is unused again.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterator, Sequence

import numpy as np

from accerl.config import ReplayConfig
from accerl.groups import Groups
from accerl.replay.ages import Ages, oldest_version
from accerl.replay.order import Entry, make_order
from accerl.replay.success import Balanced
from accerl.types import BatchRule, Trajectory


class Replay:
    """One shard. `push` costs O(log n) of n segments, `sample` as much a segment that it gives.

    Args:
        groups: holds episodes back until they can be compared with the others of their group.
    """

    def __init__(self, config: ReplayConfig, seed: int = 0, groups: Groups | None = None):
        self._groups = groups
        self._compared: deque[Trajectory] = deque()  # for which there was no room yet
        self._capacity = max(1, config.capacity_decisions // config.num_shards)
        self._max_reuse = config.max_reuse
        self._min_decisions = max(1, config.min_decisions // config.num_shards)
        self._overwrites = config.order == "ring"
        self._entries: OrderedDict[int, Entry] = OrderedDict()  # by key, which is by age
        self._lent: dict[int, dict[int, Entry]] = {}  # batch to what was first used in it
        self._generator = np.random.default_rng(seed)
        if config.success_share is None:
            self._order = make_order(config, self._generator)
        else:
            self._order = Balanced(lambda: make_order(config, self._generator), config.success_share)
        self._ages = None if config.max_age_versions is None else Ages(config.max_age_versions)
        self._next_key = 0
        self.num_decisions = 0
        self.unused_decisions = 0
        self.lent_decisions = 0
        """First used in batches that were not confirmed yet."""
        self.pushed_decisions = 0
        self.used_decisions = 0
        """Trained on at least once."""
        self.sampled_decisions = 0
        self.aged_decisions = 0
        """Dropped unused because of `replay.max_age_versions`."""
        self._overwritten_decisions = 0

    @property
    def discarded_decisions(self) -> int:
        """Decisions that went without ever being trained on, those that became too old (`aged_decisions`) apart."""
        return self._overwritten_decisions + (self._groups.discarded_decisions if self._groups is not None else 0)

    @property
    def episodes(self) -> list[int]:
        """Numbers of the episodes of which it holds unused or unconfirmed segments."""
        unused = [entry.trajectory.episode for entry in self._entries.values() if entry.uses == 0]
        return unused + [entry.trajectory.episode for lent in self._lent.values() for entry in lent.values()]

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
            batch: number of the batch that they are for, which `confirm` names; the version that is trained on it.
        """
        self._take_in_compared()
        self._let_go_aged(batch)
        if self.pushed_decisions < self._min_decisions or self.num_decisions < num_decisions:
            return ()
        return self._use(self._order.draw(num_decisions), batch)

    def take(self, num_decisions: int, rule: BatchRule, batch: int = 0) -> Sequence[Trajectory]:
        """Segments that `rule` admits: unused ones as they came, then used ones; as many as there are.

        Up to `num_decisions` (the last segment may go beyond), and all that the rule wants in this batch.
        """
        self._take_in_compared()
        self._let_go_aged(batch)
        if rule.oldest_version is not None:
            self._let_go_below(rule.oldest_version - 1)
        chosen: list[Entry] = []
        missing = num_decisions
        for entry in self._admitted(rule):
            is_late = rule.oldest_version is not None and oldest_version(entry.trajectory) < rule.oldest_version
            if missing > 0 or ((rule.needs_all or is_late) and entry.uses == 0):
                chosen.append(entry)
                missing -= entry.num_decisions
        return self._use(chosen, batch)

    def confirm(self, batch: int) -> None:
        """The learner has trained on every batch up to this one."""
        for number in [number for number in self._lent if number <= batch]:
            for entry in self._lent.pop(number).values():
                entry.batch = None
                self.lent_decisions -= entry.num_decisions

    def reclaim(self) -> int:
        """What was first used in batches that were never confirmed is unused again; returns its decisions."""
        returned = 0
        for lent in self._lent.values():
            for entry in lent.values():
                if entry.is_held:
                    self._remove(entry)
                entry.uses, entry.batch, entry.key = 0, None, self._new_key()
                self._add(entry)
                returned += entry.num_decisions
        self._lent.clear()
        self.lent_decisions = 0
        self.used_decisions -= returned
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
            oldest = next(iter(self._entries.values()))
            if oldest.uses == 0:
                if not self._overwrites:
                    return False
                self._overwritten_decisions += oldest.num_decisions
            self._remove(oldest)
        self._add(Entry(trajectory, self._new_key()))
        self.pushed_decisions += size
        return True

    def _admitted(self, rule: BatchRule) -> Iterator[Entry]:
        """What may be in the batch, the least used ones first, in the order in which they came."""
        below = rule.episodes_below
        for entry in self._order.by_uses():
            if rule.needs_all and entry.uses > 0:
                return
            if below is None or entry.trajectory.episode < below:
                yield entry

    def _use(self, entries: Sequence[Entry], batch: int) -> list[Trajectory]:
        for entry in entries:
            self._count_use(entry, batch)
        self.sampled_decisions += sum(entry.num_decisions for entry in entries)
        return [entry.trajectory for entry in entries]

    def _count_use(self, entry: Entry, batch: int) -> None:
        if entry.uses == 0:
            self.used_decisions += entry.num_decisions
            self.lent_decisions += entry.num_decisions
            self._lent.setdefault(batch, {})[entry.key] = entry
            entry.batch = batch
        if entry.uses + 1 == self._max_reuse:
            self._remove(entry)
            entry.uses += 1
        else:
            self._order.remove(entry)
            self.unused_decisions -= entry.num_decisions if entry.uses == 0 else 0
            entry.uses += 1
            self._order.add(entry)

    def _let_go_aged(self, version: int) -> None:
        """Drop segments with decisions that are too old, used or not."""
        if self._ages is None:
            return
        for entry in self._ages.too_old(version):
            if entry.uses == 0:
                self.aged_decisions += entry.num_decisions
            self._remove(entry)

    def _let_go_below(self, version: int) -> None:
        """Drop used segments with decisions of older versions."""
        if self._max_reuse > 1:
            for entry in list(self._entries.values()):
                if entry.uses > 0 and oldest_version(entry.trajectory) < version:
                    self._remove(entry)

    def _new_key(self) -> int:
        self._next_key += 1
        return self._next_key - 1

    def _add(self, entry: Entry) -> None:
        entry.is_held = True
        self._entries[entry.key] = entry
        self._order.add(entry)
        self.num_decisions += entry.num_decisions
        self.unused_decisions += entry.num_decisions
        if self._ages is not None:
            self._ages.add(entry)

    def _remove(self, entry: Entry) -> None:
        """Hold it no more; it was used, unless a counter has it."""
        entry.is_held = False
        del self._entries[entry.key]
        self._order.remove(entry)
        self.num_decisions -= entry.num_decisions
        self.unused_decisions -= entry.num_decisions if entry.uses == 0 else 0
        if self._ages is not None:
            self._ages.remove(entry)
