"""The weight channel between threads of one process; `accerl.runtime` has the one between processes."""

from __future__ import annotations

import threading

from accerl.types import Weights


class WeightChannel:
    """Holds the newest version only: a publisher never waits and a slow receiver skips versions."""

    def __init__(self) -> None:
        self._newest: Weights | None = None
        self._changed = threading.Condition()

    def publish(self, weights: Weights) -> None:
        with self._changed:
            self._newest = weights
            self._changed.notify_all()

    def latest(self, after: int, timeout_s: float) -> Weights | None:
        with self._changed:
            self._changed.wait_for(lambda: self._is_newer(after), timeout_s)
            return self._newest if self._is_newer(after) else None

    def _is_newer(self, after: int) -> bool:
        return self._newest is not None and self._newest.version > after
