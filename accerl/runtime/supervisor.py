"""Keeps a role's actor at work: Ray restarts its process, this starts its work again and writes down what happened.

What ended the process may have been somebody else, the role itself, or `heartbeats`, where it lived and did nothing.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import ActorDiedError, RayActorError, RayError, RayTaskError

from accerl.files import append_line, read_lines
from accerl.runtime.heartbeats import Heartbeats

MAX_FAILURES = 6
"""Failures of one role in `FAILURE_WINDOW_S`, between which it gets nowhere, that end the run; those inside the
environment of a task do not count."""
FAILURE_WINDOW_S = 120.0
MAX_BACKOFF_S = 10.0


class RoleError(RuntimeError):
    """A role failed again and again; the run cannot go on."""


class Incidents:
    """Appends to `incidents.jsonl` in the run's folder."""

    def __init__(self, folder: Path):
        self._path = folder / "incidents.jsonl"
        self.count = len(read_lines(self._path))

    def add(self, role: str, what: str, action: str) -> None:
        self.count += 1
        line = {"time": time.time(), "role": role, "what": what, "action": action}
        append_line(self._path, line)


class Supervisor:
    """Runs the roles until their work is done; after a failure it restarts them, with a pause that doubles.

    Args:
        actor: gives the actor of a role.
        start_s: longest that a process may take to come up.
        has_moved: called with the name and the seconds that the process had worked, at a failure; whether those before
            are forgotten, as the role has got further since.
        on_failure: called with the name and the number of restarts so far, before the restart.
        on_return: called with the same, the time of the failure and the seconds that the process had worked, after it;
            whether the failure was not the role's.
        remake: makes an actor anew that Ray does not restart.
        incarnations: restarts so far of roles that another controller has started.
    """

    def __init__(
        self,
        incidents: Incidents,
        heartbeats: Heartbeats,
        actor: Callable[[str], Any],
        start_s: float,
        has_moved: Callable[[str, float], bool],
        on_failure: Callable[[str, int], Awaitable[None]],
        on_return: Callable[[str, int, float, float], Awaitable[bool]],
        remake: Callable[[str], Awaitable[None]],
        incarnations: Mapping[str, int],
    ):
        self.incarnations = dict(incarnations)
        self._incidents = incidents
        self._heartbeats = heartbeats
        self._actor = actor
        self._start_s = start_s
        self._has_moved = has_moved
        self._on_failure = on_failure
        self._on_return = on_return
        self._remake = remake

    def begin(self, name: str) -> asyncio.Task[None]:
        """Run the role, or go on with what another controller has begun; ends when its work is done.

        The task raises RoleError after too many failures in a short time, or if a process does not come up.
        """
        is_taken_over = name in self.incarnations
        self.incarnations.setdefault(name, 0)
        return asyncio.create_task(self._keep_running(name, is_taken_over))

    async def _keep_running(self, name: str, is_taken_over: bool) -> None:
        failures: deque[float] = deque(maxlen=MAX_FAILURES)
        reason = None
        if is_taken_over and not await _is_at_work(self._actor(name)):
            reason = "its process ended while there was no controller"
        while True:
            incarnation, began = self.incarnations[name], time.monotonic()
            reason = reason or await self._run(name, incarnation)
            if reason is None:
                return
            worked_s = time.monotonic() - began
            if self._has_moved(name, worked_s):
                failures.clear()
            await self._on_failure(name, incarnation)
            failed_at = self._count(name, reason, failures, "restarted")
            while (reason := await self._come_back(name, len(failures))) is not None:
                failed_at = self._count(name, reason, failures, "made anew")
            self.incarnations[name] += 1
            if await self._on_return(name, incarnation, failed_at, worked_s):
                failures.pop()

    async def _run(self, name: str, incarnation: int) -> str | None:
        """Why the role has failed; None: its work is done."""
        actor = self._actor(name)
        try:
            await actor.run.remote(incarnation)
            return None
        except RayTaskError as error:  # also where it raised that another actor has died, which is a RayActorError too
            ray.kill(actor, no_restart=False)  # a process whose role has raised is in no known state
            return first_line(error)
        except RayActorError as error:
            return self._heartbeats.reason(name) or (first_line(error) if ended_by_us(error) else "its process ended")

    def _count(self, name: str, reason: str, failures: deque[float], action: str) -> float:
        """Write a failure down; returns its time.

        Raises:
            RoleError: it was one too many.
        """
        failures.append(time.monotonic())
        if len(failures) == MAX_FAILURES and failures[-1] - failures[0] < FAILURE_WINDOW_S:
            self._incidents.add(name, reason, "gave up")
            raise RoleError(f"{name} failed {MAX_FAILURES} times in {FAILURE_WINDOW_S:.0f} s: {reason}")
        self._incidents.add(name, reason, action)
        return failures[-1]

    async def _come_back(self, name: str, num_failures: int) -> str | None:
        """Returns when another process has the role's place and answers; or why that one could not be made.

        Ray restarts a process that has ended. It does not if the constructor has raised, or if we have ended the actor
        to have it elsewhere; that one is made anew.
        """
        await asyncio.sleep(min(0.2 * 2 ** (num_failures - 1), MAX_BACKOFF_S))
        deadline = time.monotonic() + self._start_s
        while True:
            try:
                await asyncio.wait_for(_health(self._actor(name)), 10.0)
                return None
            except ActorDiedError as error:
                await self._remake(name)
                if ended_by_us(error):
                    return first_line(error)
            except (RayError, TimeoutError) as error:
                if time.monotonic() > deadline:
                    raise RoleError(f"{name} did not answer {self._start_s:.0f} s after its restart") from error
                await asyncio.sleep(0.2)


def ended_by_us(error: RayActorError) -> bool:
    """The actor's constructor raised, so that the message says why."""
    return "Error" in str(error) and "__init__" in str(error)


def first_line(error: BaseException) -> str:
    """What an exception of a remote call says, without the remote traceback."""
    cause = getattr(error, "cause", None)
    while isinstance(cause, BaseExceptionGroup):
        cause = cause.exceptions[0]
    text = f"{type(cause).__name__}: {cause}" if cause is not None else str(error)
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__


async def _is_at_work(actor: Any) -> bool:
    try:
        return await actor.is_at_work.remote()
    except RayError:
        return False


async def _health(actor: Any) -> Any:
    return await actor.health.remote()
