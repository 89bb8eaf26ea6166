"""The requests that wait for a batch, and when it is due."""

from __future__ import annotations

import logging
import math
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from accerl.batching import Arrivals, ForwardTime, worthwhile_wait_s
from accerl.config import InferenceConfig

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """When a batch leaves an idle device, and how large it may be."""

    batch_size: int
    """B: enough to leave, and the most a batch takes."""
    max_wait_s: float
    """T_max: age of the oldest request at which a batch leaves in any case."""
    adaptive: bool = False
    """Leave before that where waiting costs more than it gains (`worthwhile_wait_s`), as soon as that is known."""
    lockstep: bool = False
    """Leave when every request that is expected has come, with all of them; B and T_max do not apply."""
    patience_s: float = 30.0
    """In lockstep: age of the oldest request at which what has not come is expected no longer."""

    @classmethod
    def of(cls, config: InferenceConfig, lockstep: bool = False) -> Window:
        return cls(
            batch_size=config.batch_size,
            max_wait_s=config.max_wait_s,
            adaptive=config.adaptive_wait,
            lockstep=lockstep,
        )


@dataclass(slots=True)
class Waiting:
    """A request in the queue, and the way back to its asker."""

    arrived_s: float
    request: Any
    tag: Any
    done: Callable[[list[Any], list[Any]], None]
    client: str


class ServiceClosed(RuntimeError):  # noqa: N818 - it says what happened, and it is not always a mistake
    """The service ended before it could answer."""


class RequestQueue:
    """The requests that wait, oldest first. Not for several threads at once; times are the caller's."""

    def __init__(self, window: Window):
        self._window = window
        self._entries: deque[Waiting] = deque()
        self._waiting: Counter[str] = Counter()  # by client, in lockstep
        self._expected: Counter[str] = Counter()
        self._arrivals = Arrivals()
        self._forward_time = ForwardTime()
        self._leave_s: float | None = None  # what the adaptive window decided; None: an arrival has changed it

    def __len__(self) -> int:
        return len(self._entries)

    def add(self, entries: Sequence[Waiting], now_s: float) -> None:
        """What arrived together."""
        self._entries.extend(entries)
        if self._window.lockstep:
            self._waiting.update(entry.client for entry in entries)
        self._arrivals.add(now_s, len(entries))
        self._leave_s = None

    def expect(self, client: str, num_slots: int) -> None:
        """In lockstep: that many requests of `client` belong into each batch."""
        self._expected[client] = num_slots

    def learn(self, size: int, seconds: float) -> None:
        """How long a forward took."""
        self._forward_time.add(size, seconds)

    def remaining_s(self, now_s: float, device_was_busy: bool) -> float:
        """Until a batch is due, if nothing else arrives; not above 0: now."""
        if not self._entries:
            return math.inf
        oldest_s = self._entries[0].arrived_s
        if self._window.lockstep:
            return oldest_s + self._window.patience_s - now_s if self._missing() else 0.0
        if device_was_busy or len(self._entries) >= self._window.batch_size:
            return 0.0
        due_s = oldest_s + self._window.max_wait_s
        if self._window.adaptive:
            if self._leave_s is None:
                self._leave_s = now_s + self._worthwhile_wait_s()
            due_s = min(due_s, self._leave_s)
        return due_s - now_s

    def take(self) -> list[Waiting]:
        """The batch that is due."""
        if not self._window.lockstep:
            size = min(len(self._entries), self._window.batch_size)
            return [self._entries.popleft() for _ in range(size)]
        if missing := self._missing():
            _log.warning("going on without requests of %s", ", ".join(missing))
            self._expected.update({client: self._waiting[client] - self._expected[client] for client in missing})
        return self.take_all()

    def take_all(self) -> list[Waiting]:
        """Everything, whether it is due or not."""
        batch = list(self._entries)
        self._entries.clear()
        self._waiting.clear()
        return batch

    def _missing(self) -> list[str]:
        return [client for client, slots in self._expected.items() if self._waiting[client] < slots]

    def _worthwhile_wait_s(self) -> float:
        fixed_s, each_s = self._forward_time.line()
        if fixed_s == math.inf:
            return math.inf
        room = self._window.batch_size - len(self._entries)
        per_arrival = min(self._arrivals.mean_size, room)
        return worthwhile_wait_s(len(self._entries), self._arrivals.gaps, per_arrival, fixed_s, each_s)
