"""Which segments of a shard are given next: one class for each `replay.order`."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from accerl.config import ReplayConfig
from accerl.replay.sum_tree import SumTree
from accerl.types import Trajectory


@dataclass(slots=True, eq=False)
class Entry:
    """A segment that a shard holds, or has lent."""

    trajectory: Trajectory
    key: int
    """Grows with the time at which it came, or came back."""
    number: int
    """Its name on disk."""
    uses: int = 0
    place: int = 0
    """Where its order has it."""
    succeeded: bool = False
    """Its episode is known to have succeeded."""
    is_held: bool = False
    batch: int | None = None
    """In which it was first used, until that is confirmed."""
    file: Path | None = None
    """Where it is on disk."""
    copy: Path | None = None
    """The same file beside the journal that says that it came."""
    is_synced: bool = False
    """That file outlives the machine."""
    is_spilled: bool = False
    """Its images are nowhere else."""
    rank: int | None = None
    """Among those in memory; None: it is not counted there."""

    @property
    def num_decisions(self) -> int:
        return self.trajectory.num_decisions


class Order(Protocol):
    """The segments that may be sampled."""

    def add(self, entry: Entry) -> None: ...

    def remove(self, entry: Entry) -> None:
        """Before its number of uses changes, and when it is let go."""
        ...

    def draw(self, num_decisions: int) -> list[Entry]:
        """Different segments with at least that many decisions in all, if there are so many."""
        ...

    def by_uses(self) -> Iterator[Entry]:
        """The least used ones first, among equals as they came."""
        ...

    def state(self) -> dict[str, Any]:
        """JSON-compatible: what the places of the segments do not say."""
        ...

    def restore(self, entries: Collection[Entry], state: Mapping[str, Any]) -> None:
        """Take in, while empty, what another one of the kind held, with its state: it draws what that would have. Where
        some are missing, as with a journal, the chances are the same and the draws others.
        """
        ...


def make_order(config: ReplayConfig, generator: np.random.Generator) -> Order:
    match config.order:
        case "least_used":
            return LeastUsed(config.max_reuse, generator)
        case "fifo":
            return Fifo()
        case "ring":
            return Ring(generator)


class LeastUsed:
    """Those that were used the fewest times, among equals at random."""

    def __init__(self, max_reuse: int, generator: np.random.Generator):
        self._buckets: list[list[Entry]] = [[] for _ in range(max_reuse)]
        self._generator = generator

    def add(self, entry: Entry) -> None:
        bucket = self._buckets[entry.uses]
        entry.place = len(bucket)
        bucket.append(entry)

    def remove(self, entry: Entry) -> None:
        bucket = self._buckets[entry.uses]
        last = bucket.pop()
        if entry.place < len(bucket):
            bucket[entry.place] = last
            last.place = entry.place

    def draw(self, num_decisions: int) -> list[Entry]:
        chosen: list[Entry] = []
        missing = num_decisions
        for bucket in self._buckets:
            for index in self._generator.permutation(len(bucket)):
                if missing <= 0:
                    break
                chosen.append(bucket[index])
                missing -= bucket[index].num_decisions
        return chosen

    def by_uses(self) -> Iterator[Entry]:
        for bucket in self._buckets:
            yield from sorted(bucket, key=_key)

    def state(self) -> dict[str, Any]:
        return {}

    def restore(self, entries: Collection[Entry], state: Mapping[str, Any]) -> None:
        for entry in sorted(entries, key=_place):
            self.add(entry)


class Fifo:
    """Those that came first. What was added again, because a learner died with it, came last."""

    def __init__(self) -> None:
        self._entries: OrderedDict[int, Entry] = OrderedDict()  # finds its first in O(1), which a dict does not

    def add(self, entry: Entry) -> None:
        self._entries[entry.key] = entry

    def remove(self, entry: Entry) -> None:
        del self._entries[entry.key]

    def draw(self, num_decisions: int) -> list[Entry]:
        chosen: list[Entry] = []
        missing = num_decisions
        for entry in self._entries.values():
            if missing <= 0:
                break
            chosen.append(entry)
            missing -= entry.num_decisions
        return chosen

    def by_uses(self) -> Iterator[Entry]:
        yield from self._entries.values()

    def state(self) -> dict[str, Any]:
        return {}

    def restore(self, entries: Collection[Entry], state: Mapping[str, Any]) -> None:
        for entry in sorted(entries, key=_key):
            self.add(entry)


class Ring:
    """Each draw is a decision at random, all alike, which brings its segment: a long one has the larger chance."""

    def __init__(self, generator: np.random.Generator):
        self._tree = SumTree()
        self._at: dict[int, Entry] = {}  # by place
        self._generator = generator

    def add(self, entry: Entry) -> None:
        entry.place = self._tree.add(entry.num_decisions)
        self._at[entry.place] = entry

    def remove(self, entry: Entry) -> None:
        self._tree.remove(entry.place)
        del self._at[entry.place]

    def draw(self, num_decisions: int) -> list[Entry]:
        chosen: list[Entry] = []
        missing = num_decisions
        while missing > 0 and self._tree.total > 0:
            entry = self._at[self._tree.find(int(self._generator.integers(self._tree.total)))]
            self._tree.set(entry.place, 0)
            chosen.append(entry)
            missing -= entry.num_decisions
        for entry in chosen:
            self._tree.set(entry.place, entry.num_decisions)
        return chosen

    def by_uses(self) -> Iterator[Entry]:
        yield from sorted(self._at.values(), key=lambda entry: (entry.uses, entry.key))

    def state(self) -> dict[str, Any]:
        return {"free": self._tree.free}

    def restore(self, entries: Collection[Entry], state: Mapping[str, Any]) -> None:
        at = {entry.place: entry for entry in entries}
        free = state.get("free", [])
        if sorted((*at, *free)) != list(range(len(entries) + len(free))):
            for entry in sorted(entries, key=_place):
                self.add(entry)
            return
        for place in range(len(entries) + len(free)):
            self._tree.add(at[place].num_decisions if place in at else 0)
        for place in free:
            self._tree.remove(place)
        self._at = at


def _key(entry: Entry) -> int:
    return entry.key


def _place(entry: Entry) -> int:
    return entry.place
