"""Nodes on which roles keep failing are left out, while there are others."""

from __future__ import annotations

import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterable

MAX_FAILURES = 3
"""Of roles soon after their start, one after the other, within `WINDOW_S`: then a node is left out."""
WINDOW_S = 120.0
SOON_S = 20.0
"""After its start. A process that had worked for longer was not failed by its node."""
TOGETHER_S = 3.0
"""Failures that are closer count once: what ended the processes was one thing."""


class Nodes:
    """Counts failures by node. The controller's own, without which there is no run, is never left out.

    Args:
        here: the controller's.
        left_out: by the controller before.
        living: gives the nodes that the cluster has now.
    """

    def __init__(self, here: str, left_out: Iterable[str], living: Callable[[], set[str]]):
        self.left_out = set(left_out)
        self._here = here
        self._living = living
        self._failures: dict[str, deque[float]] = defaultdict(lambda: deque(maxlen=MAX_FAILURES))

    def failed(self, node: str | None, lived_s: float) -> bool:
        """A role has failed there, so many seconds after its start; whether the node is left out from now on."""
        if not node or node == self._here or node in self.left_out or lived_s > SOON_S:
            return False
        times, now = self._failures[node], time.monotonic()
        if times and now - times[-1] < TOGETHER_S:
            return False
        times.append(now)
        if len(times) < MAX_FAILURES or now - times[0] > WINDOW_S or node not in self._living():
            return False
        self.left_out.add(node)
        return True
