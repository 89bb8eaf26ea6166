"""Calls of environments: bounded in time, and noted where the end of their process does not reach.

stepping thread: begin ─► environment ─► end          bound: it takes too long ─► stacks in the crash log, exit
                   └─► notes, in a file ◄─┘
next process:          lost_calls ─► which task its predecessor ended in, and how
"""

from __future__ import annotations

import faulthandler
import os
import re
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

import numpy as np

NOTE = np.dtype([("state", "u1"), ("task", "i4"), ("thread", "u8"), ("began_s", "f8"), ("log_size", "u8")])
"""Of one stepping thread; `log_size` is what the crash log held before this process wrote to it."""
IDLE, UNDER_WAY, OVERDUE = range(3)
NO_TASK = -1
LOOK_EVERY_S = 1.0


class Calls:
    """What each stepping thread calls at the moment.

    The notes are a mapped file: they cost no system call, and the kernel keeps them whatever ends the process.

    Args:
        tasks: that a note can name.
        num_threads: each with one call at a time.
        crash_log: of the process; what it holds now is of processes before.
    """

    def __init__(self, path: Path, tasks: Sequence[str], num_threads: int, crash_log: Path):
        notes = np.memmap(path, NOTE, "w+", shape=(num_threads,))
        notes["log_size"] = crash_log.stat().st_size
        self._state, self._task = notes["state"], notes["task"]
        self._thread, self._began_s = notes["thread"], notes["began_s"]
        self._numbers = {task: number for number, task in enumerate(tasks)}

    def begin(self, thread: int, task: str | None) -> None:
        """Thread number `thread`, which is the caller, calls the environment of a task; None: it makes one."""
        self._task[thread] = NO_TASK if task is None else self._numbers[task]
        self._thread[thread] = threading.get_ident()
        self._began_s[thread] = time.monotonic()
        self._state[thread] = UNDER_WAY  # last: a note that says so is whole

    def end(self, thread: int) -> None:
        self._state[thread] = IDLE

    def mark_overdue(self, hang_s: float) -> bool:
        """Mark the calls that are under way for longer; whether there are any."""
        overdue = (self._state == UNDER_WAY) & (time.monotonic() - self._began_s > hang_s)
        self._state[overdue] = OVERDUE
        return bool(overdue.any())


@dataclass(frozen=True, slots=True, kw_only=True)
class LostCall:
    """A call that ended with its process."""

    task: str | None
    """None: the environment was being made."""
    reason: str
    is_proven: bool
    """It hung or crashed; otherwise the process may have been killed by somebody else."""


def bound(calls: Calls, hang_s: float, crash_log: TextIO) -> None:
    """From now on a call that takes longer than `hang_s` ends this process, with the stacks of all threads in the log.

    A call that keeps Python's lock stops the thread that looks after it, too. Then faulthandler's ends the process: it
    needs no lock, and is put off for as long as the other one runs.
    """
    threading.Thread(target=_watch, args=(calls, hang_s, crash_log), name="deadline", daemon=True).start()


def lost_calls(path: Path, tasks: Sequence[str], crash_log: Path, hang_s: float) -> list[LostCall]:
    """What a process that has ended was calling, from the notes that it left; nothing if there are none.

    Those at fault only: the calls that were overdue, or the one whose thread crashed. Where neither is known, it is the
    one that began last: of several threads, the last to get Python's lock most likely keeps it.
    """
    if not path.exists():
        return []
    notes = np.fromfile(path, NOTE)
    notes = notes[np.isin(notes["state"], (UNDER_WAY, OVERDUE)) & (notes["task"] < len(tasks))]
    if not len(notes):
        return []
    dump = crash_log.read_bytes()[int(notes["log_size"][0]) :].decode(errors="replace") if crash_log.exists() else ""
    stacks = f"; stacks in {crash_log.parent.name}/{crash_log.name}" if dump else ""
    overdue, last = notes[notes["state"] == OVERDUE], notes[[notes["began_s"].argmax()]]
    if len(overdue) or "Timeout (" in dump:
        at_fault, is_proven = overdue if len(overdue) else last, True
        reason = f"no answer within {hang_s:g} s: the environment hung{stacks}"
    else:
        crash = re.search(r"Fatal Python error: (.+)", dump)
        thread = re.search(r"Current thread 0x([0-9a-f]+)", dump)
        crashed = notes[notes["thread"] == (int(thread[1], 16) if thread else 0)]
        at_fault, is_proven = (crashed, True) if len(crashed) else (last, False)
        reason = f"the end of its process inside the environment{f': {crash[1]}' if crash else ''}{stacks}"
    numbers: list[int] = at_fault["task"].tolist()
    named = [None if number == NO_TASK else tasks[number] for number in numbers]
    return [LostCall(task=task, reason=reason, is_proven=is_proven) for task in named]


def _watch(calls: Calls, hang_s: float, crash_log: TextIO) -> None:
    while not calls.mark_overdue(hang_s):
        faulthandler.dump_traceback_later(min(hang_s, threading.TIMEOUT_MAX), exit=True, file=crash_log)
        time.sleep(min(LOOK_EVERY_S, hang_s / 4))
    os.write(crash_log.fileno(), f"No answer of an environment within {hang_s:g} s\n".encode())
    faulthandler.dump_traceback(crash_log)
    os._exit(1)  # a thread inside C code cannot be interrupted
