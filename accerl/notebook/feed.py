"""What a viewer shows, kept up to date by a thread: a bounded ring of episodes, joined from their segments."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from accerl.recent import Cursor, Seen
from accerl.trajectories import joined
from accerl.types import Trajectory

POLL_EVERY_S = 1.0
AT_FIRST, EACH_TIME = 16, 4
"""Trajectories of each source that are asked for at once."""


class Watched(Protocol):
    """A run, as far as a feed needs it."""

    def watch(self, cursor: Cursor, num: int = ...) -> Seen: ...

    def status(self) -> dict[str, Any]: ...


Episodes = Mapping[int, Trajectory]
"""By number."""


class Feed:
    """The newest `keep` episodes of whatever is given to it.

    Args:
        on_change: called with the episodes that are new or longer, and with those that have left.
    """

    def __init__(self, keep: int, on_change: Callable[[Episodes, Episodes], None] = lambda new, gone: None):
        self._keep = keep
        self._on_change = on_change
        self._lock = threading.Lock()
        self._episodes: OrderedDict[int, Trajectory] = OrderedDict()
        self._next = 0

    def add(self, trajectories: Sequence[Trajectory]) -> list[int]:
        """A segment goes to the episode that it continues, if that one is there; returns the number of each."""
        with self._lock:
            numbers = [self._place(trajectory) for trajectory in trajectories]
            gone = dict(self._episodes.popitem(last=False) for _ in range(len(self._episodes) - self._keep))
            changed = {number: self._episodes[number] for number in dict.fromkeys(numbers) if number not in gone}
        if changed or gone:
            self._on_change(changed, gone)
        return numbers

    def get(self, number: int) -> Trajectory:
        """Raises KeyError if it has left."""
        with self._lock:
            return self._episodes[number]

    def episodes(self) -> Episodes:
        """Those that are there now, oldest first."""
        with self._lock:
            return dict(self._episodes)

    def _place(self, trajectory: Trajectory) -> int:
        for number, before in reversed(self._episodes.items()):
            same = (before.origin, before.episode) == (trajectory.origin, trajectory.episode)
            if same and before.episode_step[-1] == trajectory.episode_step[0] and not before.ended:
                self._episodes[number] = joined(before, trajectory)
                return number
        number, self._next = self._next, self._next + 1
        self._episodes[number] = trajectory
        return number


class Poller:
    """Asks a run for what is new, in a daemon thread: a cell that computes does not stop it.

    Args:
        on_state: called with the run's state, and its reason if there is one, when they change.
    """

    def __init__(self, run: Watched, feed: Feed, on_state: Callable[[str], None] = lambda state: None):
        self._run = run
        self._feed = feed
        self._on_state = on_state
        self._state = ""
        self._cursor: Cursor = {}
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._poll, name="trajectory viewer", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Ask no more."""
        self._ended.set()

    def _poll(self) -> None:
        num = AT_FIRST
        while not self._ended.is_set():
            try:
                seen = self._run.watch(self._cursor, num)
            except (ConnectionError, RuntimeError) as error:  # it has ended, or its cluster is gone: the folder tells
                self._tell(str(error))
            else:
                self._cursor, num = seen.cursor, EACH_TIME
                self._feed.add(seen.trajectories)
                status = self._run.status()
                reason = status.get("reason")
                self._tell(f"{status['state']}: {reason}" if reason else status["state"])
            self._ended.wait(POLL_EVERY_S)

    def _tell(self, state: str) -> None:
        if state != self._state:
            self._state = state
            self._on_state(state)
