"""Checkpoints beside training: the trainer waits for a copy of its state, a thread does the rest.

 trainer's thread                                     writing thread
 update N
 is_due() ─► save(copy of the state after update N) ─► checksums, files, fsync, rename, older ones go
 update N+1 …
 finish() ─► waits for the one that is being written, then for the last one

One is written at a time. What is asked for meanwhile waits for the next free moment and gets the state of then.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from accerl.checkpoint import Content, save_checkpoint
from accerl.trace import Tracer

LANE = "checkpoint"


class NotSaved(RuntimeError):  # noqa: N818 - it says what happened
    """A checkpoint that was asked for could not be written; the message says why."""


class CheckpointWriter:
    """`request` may be called from any thread, everything else from the trainer's.

    Args:
        every_s: seconds from one checkpoint to the next, if nobody asks for one.
        on_failure: told why one could not be written, in the writing thread; the next one is tried when it is due.
    """

    def __init__(
        self,
        folder: Path,
        keep: int,
        keep_best: bool,
        every_s: float,
        on_failure: Callable[[str], None],
        tracer: Tracer | None = None,
    ):
        self._folder = folder
        self._keep = keep
        self._keep_best = keep_best
        self._every_s = every_s
        self._on_failure = on_failure
        self._tracer = tracer or Tracer.off()
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._writing: Future[None] | None = None
        self._last_save = time.monotonic()
        self._changed = threading.Condition()
        self._asked = self._answered = 0
        self._outcome: Path | str = ""
        """Of the newest attempt: a checkpoint, or why there is none."""
        self._report: dict[str, float] = {}

    def request(self) -> Path:
        """A checkpoint of a state from now on, when it is on the disk.

        Raises:
            NotSaved: it could not be written.
        """
        with self._changed:
            self._asked += 1
            mine = self._asked
            self._changed.wait_for(lambda: self._answered >= mine)
            if isinstance(self._outcome, str):
                raise NotSaved(self._outcome)
            return self._outcome

    def is_due(self) -> bool:
        """Whether to call `save`."""
        if self._is_writing():
            return False
        return self._asked > self._answered or time.monotonic() - self._last_save > self._every_s

    def save(self, take: Callable[[], Callable[[], Content]]) -> None:
        """Begin to write; one that is being written is waited for.

        Args:
            take: copies the trainer's state, which it may go on to change; gives what completes the content, in the
                writing thread.
        """
        self._wait()
        started = self._last_save = time.monotonic()
        with self._tracer.span("checkpoint"):
            asked, complete = self._asked, take()
        held_s = time.monotonic() - started
        self._writing = self._thread.submit(self._write, complete, asked, held_s)

    def finish(self) -> Path:
        """Wait for what is being written.

        Raises:
            NotSaved: it could not be written.
        """
        self._wait()
        if isinstance(self._outcome, str):
            raise NotSaved(self._outcome)
        return self._outcome

    def close(self) -> None:
        self._thread.shutdown()

    def report(self) -> dict[str, float]:
        """Of a checkpoint that was finished since the last call: how long it held the trainer up, and how long it
        took.
        """
        with self._changed:
            report, self._report = self._report, {}
        return report

    def _is_writing(self) -> bool:
        """Raises what writing raised, but for what the disk did not take."""
        if self._writing is None:
            return False
        if not self._writing.done():
            return True
        self._wait()
        return False

    def _wait(self) -> None:
        if self._writing is not None:
            writing, self._writing = self._writing, None
            writing.result()

    def _write(self, complete: Callable[[], Content], asked: int, held_s: float) -> None:
        started = time.monotonic()
        outcome: Path | str
        try:
            with self._tracer.span("write", LANE):
                outcome = save_checkpoint(self._folder, complete(), self._keep, self._keep_best)
        except OSError as error:  # training is worth more than its checkpoint
            outcome = f"the checkpoint was not written ({error.strerror or error})"
            self._on_failure(outcome)
        with self._changed:
            self._outcome, self._answered = outcome, asked
            self._report = {
                "checkpoint_held_ms": 1e3 * held_s,
                "checkpoint_write_ms": 1e3 * (time.monotonic() - started),
            }
            self._changed.notify_all()
