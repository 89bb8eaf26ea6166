"""The segments that a shard holds: in their order, by age, in memory or on disk, and their sums."""

from __future__ import annotations

import heapq
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from accerl.config import ReplayConfig
from accerl.replay.ages import Ages
from accerl.replay.order import Entry, Order, make_order
from accerl.replay.spill import SegmentFiles
from accerl.replay.success import Balanced
from accerl.types import Trajectory

FEW = 64
"""Keys that are not worth looking through."""


class Stock:
    """Every method costs O(log n) of n segments, and most O(1).

    Args:
        files: where images go for which there is no room in memory; None: there is.
    """

    order: Order

    def __init__(self, config: ReplayConfig, generator: np.random.Generator, files: SegmentFiles | None):
        if config.success_share is None:
            self.order = make_order(config, generator)
        else:
            self.order = Balanced(lambda: make_order(config, generator), config.success_share)
        self._entries: OrderedDict[int, Entry] = OrderedDict()  # by key, which is by age
        self._used: list[int] = []  # a heap of keys; with some that have left or are unused again
        self._ages = None if config.max_age_versions is None else Ages(config.max_age_versions)
        self._files = files
        self._max_reuse = config.max_reuse
        self.num_decisions = 0
        self.unused_decisions = 0
        self.uses_left = 0
        """Over all decisions: how often they may still be trained on."""

    def __iter__(self) -> Iterator[Entry]:
        """The oldest first; others may be removed meanwhile."""
        yield from list(self._entries.values())

    @property
    def oldest(self) -> Entry:
        return next(iter(self._entries.values()))

    @property
    def oldest_used(self) -> Entry | None:
        """None: nothing was used yet."""
        while self._used:
            entry = self._entries.get(self._used[0])
            if entry is not None and entry.uses > 0:
                return entry
            heapq.heappop(self._used)
        return None

    @property
    def newest_version(self) -> int:
        """That it knows of; 0 where it does not matter."""
        return 0 if self._ages is None else self._ages.newest

    def add(self, entry: Entry) -> None:
        self._hold(entry)
        self._enter(entry)

    def remove(self, entry: Entry) -> None:
        self._leave(entry)
        self._let_go(entry)

    def use(self, entry: Entry) -> None:
        """Count a use; the last one that it may have removes it."""
        self._leave(entry)
        entry.uses += 1
        if entry.uses == 1:
            self._note_used(entry)
        if entry.uses < self._max_reuse:
            self._enter(entry)
        else:
            self._let_go(entry)

    def too_old(self, version: int) -> Iterator[Entry]:
        """Those that are now; the caller removes each before it takes the next."""
        return iter(()) if self._ages is None else self._ages.too_old(version)

    def read(self, entry: Entry) -> Trajectory:
        return entry.trajectory if self._files is None else self._files.read(entry)

    def drop(self, entry: Entry) -> None:
        """Take it off the disk, if it is neither held nor lent."""
        if self._files is not None and not entry.is_held and entry.batch is None:
            self._files.drop(entry)

    def restore(self, entries: Iterable[Entry], newest_version: int, order: Mapping[str, Any]) -> None:
        """Hold these, with their keys and places, in an order of this state."""
        held = [entry for entry in entries if entry.is_held]
        for entry in sorted(held, key=lambda each: each.key):
            self._hold(entry)
        held.sort(key=lambda each: each.place)
        self.order.restore(held, order)
        for entry in held:
            self._count(entry)
        if self._ages is not None:
            self._ages.newest = max(self._ages.newest, newest_version)

    def _note_used(self, entry: Entry) -> None:
        heapq.heappush(self._used, entry.key)
        if (
            len(self._used) > 2 * len(self._entries) + FEW
        ):  # most have left, and a shard that is never full asks for none
            self._used = [key for key, each in self._entries.items() if each.uses]  # by key, which is a heap

    def _hold(self, entry: Entry) -> None:
        entry.is_held = True
        self._entries[entry.key] = entry
        if entry.uses:
            self._note_used(entry)
        if self._ages is not None:
            self._ages.add(entry)

    def _let_go(self, entry: Entry) -> None:
        entry.is_held = False
        del self._entries[entry.key]
        if self._ages is not None:
            self._ages.remove(entry)
        self.drop(entry)

    def _enter(self, entry: Entry) -> None:
        """It may be drawn."""
        self.order.add(entry)
        self._count(entry)

    def _count(self, entry: Entry) -> None:
        self.num_decisions += entry.num_decisions
        self.unused_decisions += entry.num_decisions if entry.uses == 0 else 0
        self.uses_left += entry.num_decisions * (self._max_reuse - entry.uses)
        if self._files is not None:
            self._files.hold(entry)

    def _leave(self, entry: Entry) -> None:
        """It may not, with as many uses as it had."""
        self.order.remove(entry)
        self.num_decisions -= entry.num_decisions
        self.unused_decisions -= entry.num_decisions if entry.uses == 0 else 0
        self.uses_left -= entry.num_decisions * (self._max_reuse - entry.uses)
