"""Failures of environments: counted, written down, and what they leave of the run."""

from __future__ import annotations

import time
from collections.abc import Callable

from accerl.calls import LostCall
from accerl.runtime.supervisor import Incidents
from accerl.tasks import MAX_FAILURES, TaskSampler


class Failures:
    """A task that keeps failing is given up, and with the last one the run.

    Args:
        end: called then.
    """

    def __init__(self, tasks: TaskSampler, incidents: Incidents, end: Callable[[], None]):
        self.fatal = ""
        """Why the run cannot go on."""
        self._tasks = tasks
        self._incidents = incidents
        self._end = end
        self._counted_at: dict[str | None, float] = {}
        self._num_unmade = 0

    def add_played(self) -> None:
        """An episode was played to its end."""
        self._num_unmade = 0

    def add_raised(self, worker: str, task: str, reason: str) -> None:
        """The environment of a task has raised, and is replaced."""
        self._count(worker, task, reason, "environment replaced")

    def add_lost(self, role: str, call: LostCall, ended_at: float) -> None:
        """A worker's process has ended inside an environment, at that time of `time.monotonic()`, and is restarted.

        Workers that are killed together have not failed one after the other: they count once.
        """
        is_later = ended_at > self._counted_at.get(call.task, 0.0)
        if is_later:
            self._counted_at[call.task] = time.monotonic()
        if call.task is None:
            self._incidents.add(role, f"an environment that was being made: {call.reason}", "restarted")
            self._num_unmade += is_later
            if self._num_unmade == MAX_FAILURES:
                self.give_up(f"no environment could be made {MAX_FAILURES} times in a row, the last for {call.reason}")
        elif is_later or call.is_proven:
            self._count(role, call.task, call.reason, "restarted")

    def give_up(self, reason: str) -> None:
        """End the run, of which this is the reason unless there was one before."""
        self.fatal = self.fatal or reason
        self._end()

    def _count(self, role: str, task: str, reason: str, action: str) -> None:
        if self._tasks.fail(task):
            action = f"task put into quarantine after {MAX_FAILURES} failures"
        self._incidents.add(role, f"{task}: {reason}", action)
        if len(self._tasks.quarantined) == len(self._tasks.tasks):
            self.give_up(f"every task is in quarantine, the last one for {reason}")
