"""Which segments have become too old, without looking at the others."""

from __future__ import annotations

import heapq
from collections.abc import Iterator

from accerl.replay.order import Entry
from accerl.types import Trajectory


class Ages:
    """Segments by the version of their oldest decision; O(log n) each.

    Args:
        max_versions: behind the newest version, for a decision to stay.
    """

    def __init__(self, max_versions: int):
        self._max_versions = max_versions
        self._heap: list[tuple[int, int, Entry]] = []
        self._num_held = 0
        self.newest = 0

    def add(self, entry: Entry) -> None:
        self.newest = max(self.newest, int(entry.trajectory.policy_version.max()))
        self._num_held += 1
        heapq.heappush(self._heap, (oldest_version(entry.trajectory), entry.key, entry))

    def remove(self, entry: Entry) -> None:
        """It is not held any more. The heap forgets it when it comes up, or when most of it is like that."""
        self._num_held -= 1
        if len(self._heap) > 2 * self._num_held + 64:
            self._heap = [item for item in self._heap if _is_current(item)]
            heapq.heapify(self._heap)

    def too_old(self, version: int) -> Iterator[Entry]:
        """Those that are, now that `version` is known; the caller removes each before it takes the next."""
        self.newest = max(self.newest, version)
        while self._heap and (self._heap[0][0] < self.newest - self._max_versions or not _is_current(self._heap[0])):
            item = heapq.heappop(self._heap)
            if _is_current(item):
                yield item[2]


def oldest_version(trajectory: Trajectory) -> int:
    """Of its decisions."""
    return int(trajectory.policy_version.min())


def _is_current(item: tuple[int, int, Entry]) -> bool:
    _, key, entry = item
    return entry.is_held and entry.key == key
