"""A share of every draw from the episodes that succeeded."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

from accerl.replay.order import Entry, Order


class Balanced:
    """Two orders, of segments whose episodes are known to have succeeded, and of the others.

    Whether an episode succeeds is known at its end: then the segments of it that are still in this shard change over.
    Segments come whole; what one draw has too many of the successful ones, the next has too few of.
    """

    def __init__(self, make: Callable[[], Order], share: float):
        self._orders = {True: make(), False: make()}
        self._held = {True: 0, False: 0}
        self._share = share
        self._ahead = 0.0
        self._open: dict[tuple[str, int], dict[int, Entry]] = {}  # episode to its segments when it was going on

    def add(self, entry: Entry) -> None:
        trajectory = entry.trajectory
        if trajectory.ended:
            entry.succeeded = trajectory.success
            for earlier in self._open.pop(_episode(entry), {}).values():
                if trajectory.success:
                    self._leave(earlier)
                    earlier.succeeded = True
                    self._enter(earlier)
        elif not entry.succeeded:
            self._open.setdefault(_episode(entry), {})[entry.key] = entry
        self._enter(entry)

    def remove(self, entry: Entry) -> None:
        siblings = self._open.get(_episode(entry), {})
        if siblings.pop(entry.key, None) is not None and not siblings:
            del self._open[_episode(entry)]
        self._leave(entry)

    def draw(self, num_decisions: int) -> list[Entry]:
        wanted = min(self._share * num_decisions - self._ahead, self._held[True])
        wanted = max(wanted, num_decisions - self._held[False])
        chosen = self._orders[True].draw(-int(-wanted // 1))
        drawn = sum(entry.num_decisions for entry in chosen)
        self._ahead = drawn - wanted
        return chosen + self._orders[False].draw(num_decisions - drawn)

    def by_uses(self) -> Iterator[Entry]:
        both = (*self._orders[True].by_uses(), *self._orders[False].by_uses())
        yield from sorted(both, key=lambda entry: (entry.uses, entry.key))

    def state(self) -> dict[str, Any]:
        return {"ahead": self._ahead, "orders": [self._orders[succeeded].state() for succeeded in (False, True)]}

    def restore(self, entries: Collection[Entry], state: Mapping[str, Any]) -> None:
        self._ahead = state.get("ahead", 0.0)
        known = {_episode(entry) for entry in entries if entry.trajectory.ended}
        for entry in entries:
            self._held[entry.succeeded] += entry.num_decisions
            if not entry.succeeded and _episode(entry) not in known:
                self._open.setdefault(_episode(entry), {})[entry.key] = entry
        for succeeded, own in zip((False, True), state.get("orders", ({}, {})), strict=True):
            self._orders[succeeded].restore([entry for entry in entries if entry.succeeded == succeeded], own)

    def _enter(self, entry: Entry) -> None:
        self._orders[entry.succeeded].add(entry)
        self._held[entry.succeeded] += entry.num_decisions

    def _leave(self, entry: Entry) -> None:
        self._orders[entry.succeeded].remove(entry)
        self._held[entry.succeeded] -= entry.num_decisions


def _episode(entry: Entry) -> tuple[str, int]:
    """Played twice under one number, after its worker died, it has two origins; resumed runs use origins again."""
    return entry.trajectory.origin, entry.trajectory.episode
