"""One shard: what it holds, what it has lent, and what became of everything that was pushed.

    pushed = unused + used at least once + discarded + aged

`replay.order` says which segments a sample takes. A full shard lets the oldest of its used decisions go; an unused
one is never dropped: where all are, `push` says no and the producer waits (a ring overwrites, and counts what it
discards).
What is sampled stays until the learner has confirmed its update: if the learner dies before, it is unused again.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from accerl.config import ReplayConfig
from accerl.groups import Groups
from accerl.replay import snapshot
from accerl.replay.ages import oldest_version
from accerl.replay.journal import Event, Snapshots
from accerl.replay.lent import Lent
from accerl.replay.order import Entry
from accerl.replay.snapshot import SUMS, Checkpoint, Content, Record
from accerl.replay.spill import SegmentFiles
from accerl.replay.stock import Stock
from accerl.types import BatchRule, Trajectory


class Waiting(NamedTuple):
    """Trajectories that a shard has taken and nobody can sample yet."""

    for_group: Sequence[Trajectory]
    """Others of their group are missing."""
    for_room: Sequence[Trajectory]
    """They were compared when the shard was full."""
    discarded_decisions: int
    """Of groups that will never be complete."""


class Replay:
    """One shard. `push` costs O(log n) of n segments, `sample` as much a segment that it gives.

    Args:
        groups: holds episodes back until they can be compared with the others of their group.
        files: where images go for which there is no room in memory.
        snapshots: told of everything that happens to what was pushed.
    """

    def __init__(
        self,
        config: ReplayConfig,
        seed: int = 0,
        groups: Groups | None = None,
        files: SegmentFiles | None = None,
        snapshots: Snapshots | None = None,
    ):
        self._groups = groups
        self._files = files
        self._snapshots = snapshots
        self._compared: deque[Trajectory] = deque()  # for which there was no room yet
        self._capacity = max(1, config.capacity_decisions // config.num_shards)
        self._max_unused = None if config.max_unused is None else max(1, config.max_unused // config.num_shards)
        self._max_reuse = config.max_reuse
        self._paced = config.paced
        self._min_decisions = max(1, config.min_decisions // config.num_shards)
        self._overwrites = config.order == "ring"
        self._generator = np.random.default_rng(seed)
        self._stock = Stock(config, self._generator, files)
        self._lent = Lent()
        self._next_key = 0
        self.pushed_decisions = 0
        self.used_decisions = 0
        """Trained on at least once."""
        self.sampled_decisions = 0
        """Over all batches but those that were reclaimed: each decision as often as it was used."""
        self.aged_decisions = 0
        """Dropped unused because of `replay.max_age_versions`."""
        self.overwritten_decisions = 0
        """Dropped unused because a ring was full."""

    @property
    def num_decisions(self) -> int:
        return self._stock.num_decisions

    @property
    def unused_decisions(self) -> int:
        return self._stock.unused_decisions

    @property
    def lent_decisions(self) -> int:
        """First used in batches that were not confirmed yet."""
        return self._lent.num_decisions

    @property
    def discarded_decisions(self) -> int:
        """Decisions that went without ever being trained on; those that became too old apart."""
        return self.overwritten_decisions + (self._groups.discarded_decisions if self._groups is not None else 0)

    @property
    def episodes(self) -> list[int]:
        """Numbers of the episodes of which it holds unused or unconfirmed segments."""
        unused = (entry for entry in self._stock if entry.uses == 0)
        return [entry.trajectory.episode for entry in (*unused, *self._lent)]

    def push(self, trajectory: Trajectory) -> bool:
        """Take ownership; False if there is no room because none of its decisions was used yet.

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
        if self._is_ahead(num_decisions):
            return ()
        return self._use(self._stock.order.draw(num_decisions), batch)

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
        for entry in self._lent.confirm(batch):
            self._stock.drop(entry)
        self._note("confirmed", batch=batch)

    def reclaim(self) -> int:
        """What was first used in batches that were never confirmed is unused again; returns its decisions."""
        returned = self._lent.num_decisions
        for entry in list(self._lent):
            if entry.is_held:
                self._stock.remove(entry)
            self.sampled_decisions -= entry.uses * entry.num_decisions
            entry.uses, entry.key = 0, self._new_key()
            self._stock.add(entry)
        self._lent.take_back()
        self.used_decisions -= returned
        self._note("reclaimed")
        return returned

    def waiting(self) -> Waiting:
        """What is held back, and is not in `content`."""
        if self._groups is None:
            return Waiting((), (), 0)
        return Waiting(self._groups.held, tuple(self._compared), self._groups.discarded_decisions)

    def wait(self, waiting: Waiting) -> None:
        """Hold the same back as the shard that gave it; this one is new."""
        if self._groups is not None:
            for trajectory in waiting.for_group:
                self._groups.add(trajectory)
            self._compared.extend(waiting.for_room)
            self._groups.discarded_decisions = waiting.discarded_decisions

    def content(self) -> Content:
        """All that `restore` needs to go on from here, but what is `waiting`."""
        only_lent = (entry for entry in self._lent if not entry.is_held)
        return Content(
            next_key=self._next_key,
            newest_version=self._stock.newest_version,
            generator=self._generator.bit_generator.state,
            sums={name: getattr(self, name) for name in SUMS},
            order=self._stock.order.state(),
            segments=[(Record.of(entry), entry, entry.trajectory) for entry in (*self._stock, *only_lent)],
        )

    def restore(self, content: Content) -> None:
        """Go on from there; this shard is a new one."""
        self._next_key = content.next_key
        self._generator.bit_generator.state = content.generator
        for name in SUMS:
            setattr(self, name, content.sums[name])
        self._stock.restore((entry for _, entry, _ in content.segments), content.newest_version, content.order)
        for _, entry, _ in content.segments:
            if entry.batch is not None:
                self._lent.add(entry, entry.batch)

    def save(self, folder: Path) -> None:
        """Write the content into an empty folder."""
        snapshot.write(folder, self.content(), self._files)

    def load(self, folder: Path, checkpoint: Checkpoint | None = None) -> None:
        """Go on from what `save` wrote; see `snapshot.read`."""
        self.restore(snapshot.read(folder, self._max_reuse, self._files, checkpoint))

    def _take_in_compared(self) -> bool:
        """Groups that are complete, as far as there is room; whether there was for all."""
        while self._compared and self._take_in(self._compared[0]):
            self._compared.popleft()
        return not self._compared

    def _take_in(self, trajectory: Trajectory) -> bool:
        size = trajectory.num_decisions
        if size > self._capacity:
            raise ValueError(f"replay.capacity_decisions: {self._capacity} a shard cannot hold a segment of {size}")
        if self._max_unused is not None and self.unused_decisions >= self._max_unused:
            return False
        while self.num_decisions + size > self._capacity:
            leaving = self._stock.oldest if self._overwrites else self._stock.oldest_used
            if leaving is None:
                return False
            self.overwritten_decisions += leaving.num_decisions if leaving.uses == 0 else 0
            self._let_go(leaving, "overwritten")
        self._stock.add(entry := Entry(trajectory, key := self._new_key(), number=key))
        self.pushed_decisions += size
        if self._snapshots is not None:
            self._snapshots.came(entry, self._stock.newest_version)
        return True

    def _admitted(self, rule: BatchRule) -> Iterator[Entry]:
        """What may be in the batch, the least used ones first, in the order in which they came."""
        below = rule.episodes_below
        for entry in self._stock.order.by_uses():
            if rule.needs_all and entry.uses > 0:
                return
            if below is None or entry.trajectory.episode < below:
                yield entry

    def _use(self, entries: Sequence[Entry], batch: int) -> list[Trajectory]:
        given = [self._stock.read(entry) for entry in entries]
        for entry in entries:
            self.sampled_decisions += entry.num_decisions
            if entry.uses == 0:
                self.used_decisions += entry.num_decisions
                self._lent.add(entry, batch)
            self._stock.use(entry)
        if entries:
            self._note("used", entries, batch)
        return given

    def _is_ahead(self, num_decisions: int) -> bool:
        """Less is left than in a steady flow, whose decisions have on average gone half of their way."""
        steady = num_decisions * (self._max_reuse + 1) / 2
        return self._paced and self.unused_decisions < num_decisions and self._stock.uses_left < steady

    def _let_go_aged(self, version: int) -> None:
        """Drop segments with decisions that are too old, used or not."""
        for entry in self._stock.too_old(version):
            self.aged_decisions += entry.num_decisions if entry.uses == 0 else 0
            self._let_go(entry, "aged")

    def _let_go_below(self, version: int) -> None:
        """Drop used segments with decisions of older versions."""
        if self._max_reuse > 1:
            for entry in self._stock:
                if entry.uses > 0 and oldest_version(entry.trajectory) < version:
                    self._let_go(entry, "left")

    def _let_go(self, entry: Entry, unless_used: Event) -> None:
        self._stock.remove(entry)
        self._note(unless_used if entry.uses == 0 else "left", [entry])

    def _new_key(self) -> int:
        self._next_key += 1
        return self._next_key - 1

    def _note(self, event: Event, entries: Sequence[Entry] = (), batch: int | None = None) -> None:
        if self._snapshots is not None:
            self._snapshots.note(event, entries, batch)
