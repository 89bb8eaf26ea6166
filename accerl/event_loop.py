"""Coroutines to their end, from a script or from a notebook, in whose thread an event loop runs already."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import threading
from collections.abc import Coroutine
from concurrent.futures import Future, wait
from typing import Any, Generic, TypeVar

Result = TypeVar("Result")


def run_to_end(coroutine: Coroutine[Any, Any, Result]) -> Result:
    """What it gives, or raises: `asyncio.run`, and where a loop runs already, in a thread with a loop of its own.

    The loop of the caller stands still meanwhile, so the coroutine must not wait for anything in it. An interrupt
    cancels the coroutine and is raised when that has ended; a second one does not wait for it.
    """
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(coroutine)
    beside = _Beside(coroutine)
    try:
        beside.start()
        wait([beside.outcome])
    except BaseException:  # of this thread: the coroutine's are in the outcome
        beside.cancel()
        raise
    return beside.outcome.result()


class _Beside(Generic[Result]):
    """A coroutine in a thread of its own, with the context variables of the thread that made this."""

    def __init__(self, coroutine: Coroutine[Any, Any, Result]):
        self.outcome: Future[Result] = Future()
        self._coroutine = coroutine
        self._context = contextvars.copy_context()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="event-loop", daemon=True)
        self._task: asyncio.Task[Result] | None = None

    def start(self) -> None:
        self._thread.start()

    def cancel(self) -> None:
        """Returns when it has ended, also if it has not begun; after that it never will."""
        if self.outcome.cancel():
            self._coroutine.close()
            self._loop.close()
            return
        with contextlib.suppress(RuntimeError):  # the loop is closed, as it has ended
            self._loop.call_soon_threadsafe(self._cancel_task)
        wait([self.outcome])

    def _cancel_task(self) -> None:
        """In the loop, hence after `_run` has made the task."""
        assert self._task is not None
        self._task.cancel()

    def _run(self) -> None:
        if not self.outcome.set_running_or_notify_cancel():
            return
        try:
            with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
                self._task = runner.get_loop().create_task(self._coroutine, context=self._context)
                result = self._loop.run_until_complete(self._task)
        except BaseException as error:
            self.outcome.set_exception(error)
        else:
            self.outcome.set_result(result)
