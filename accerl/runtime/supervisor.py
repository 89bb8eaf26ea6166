"""Keeps a role's actor at work: Ray restarts its process, this starts its work again and writes down what happened."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayActorError, RayError, RayTaskError

from accerl.files import append_line

MAX_FAILURES = 6
"""Failures of one role in `FAILURE_WINDOW_S` that end the run; those inside the environment of a task do not count."""
FAILURE_WINDOW_S = 120.0
MAX_BACKOFF_S = 10.0
ANSWER_WITHIN_S = 120.0
"""For a restarted process, which has to import its libraries."""


class RoleError(RuntimeError):
    """A role failed again and again; the run cannot go on."""


class Incidents:
    """Appends to `incidents.jsonl` in the run's folder."""

    def __init__(self, folder: Path):
        self._path = folder / "incidents.jsonl"
        self.count = 0

    def add(self, role: str, what: str, action: str) -> None:
        self.count += 1
        line = {"time": time.time(), "role": role, "what": what, "action": action}
        append_line(self._path, line)


async def keep_running(
    name: str,
    actor: Any,
    incidents: Incidents,
    on_failure: Callable[[str, int], Awaitable[None]],
    on_return: Callable[[str, int, float], Awaitable[bool]],
) -> None:
    """Run a role until its work is done; after a failure restart it, with a pause that doubles.

    Args:
        on_failure: called with the name and the number of restarts so far, before the restart.
        on_return: called with the same and the time of the failure, after it; whether the failure was not the role's.

    Raises:
        RoleError: too many failures in a short time.
    """
    failures: deque[float] = deque(maxlen=MAX_FAILURES)
    incarnation = 0
    while True:
        try:
            await actor.run.remote(incarnation)
            return
        except RayActorError as error:
            reason = first_line(error) if ended_by_us(error) else "its process ended"
        except RayTaskError as error:
            reason = first_line(error)
            ray.kill(actor, no_restart=False)  # a process whose role has raised is in no known state
        await on_failure(name, incarnation)
        failures.append(time.monotonic())
        if len(failures) == MAX_FAILURES and failures[-1] - failures[0] < FAILURE_WINDOW_S:
            incidents.add(name, reason, "gave up")
            raise RoleError(f"{name} failed {MAX_FAILURES} times in {FAILURE_WINDOW_S:.0f} s: {reason}")
        incidents.add(name, reason, "restarted")
        await asyncio.sleep(min(0.2 * 2 ** (len(failures) - 1), MAX_BACKOFF_S))
        await _answers(name, actor)
        if await on_return(name, incarnation, failures[-1]):
            failures.pop()
        incarnation += 1


def ended_by_us(error: RayActorError) -> bool:
    """The actor's constructor raised, so that the message says why."""
    return "Error" in str(error) and "__init__" in str(error)


def first_line(error: BaseException) -> str:
    """What an exception of a remote call says, without the remote traceback."""
    cause = getattr(error, "cause", None)
    text = f"{type(cause).__name__}: {cause}" if cause is not None else str(error)
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__


async def _answers(name: str, actor: Any) -> None:
    """Returns when a restarted actor answers."""
    deadline = time.monotonic() + ANSWER_WITHIN_S
    while True:
        try:
            await asyncio.wait_for(_health(actor), 10.0)
            return
        except (RayError, TimeoutError) as error:
            if time.monotonic() > deadline:
                raise RoleError(f"{name} did not answer {ANSWER_WITHIN_S:.0f} s after its restart") from error
            await asyncio.sleep(0.2)


async def _health(actor: Any) -> Any:
    return await actor.health.remote()
