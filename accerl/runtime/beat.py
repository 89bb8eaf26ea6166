"""Which process a role is in, and a look at it from outside; light enough for who has not joined a cluster yet."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path
from typing import Literal, NamedTuple

import psutil

SUSPECT_AFTER_S = 2.0
"""Without an answer, a process is looked at."""
DUMP_WITHIN_S = 1.0

Finding = Literal["busy", "stopped", "hung", "gone"]


class Beat(NamedTuple):
    """Which process a role is in, and how its work goes."""

    pid: int
    created: float
    """Its start, as the system knows it; a number is given to another process some day."""
    node: str
    stalled_s: float
    """Seconds in which its work, if it has any, has not moved."""

    def to_json(self) -> str:
        return json.dumps(self._asdict())


def own_beat() -> Beat:
    """Of the calling process."""
    import ray

    node = ray.get_runtime_context().get_node_id() if ray.is_initialized() else ""
    return Beat(pid=os.getpid(), created=psutil.Process().create_time(), node=node, stalled_s=0.0)


def examine(beat: Beat, must_end: bool) -> Finding:
    """Look at a process of this node; end it if it is stopped, or if it must end, then with its stacks in its log."""
    try:
        process = psutil.Process(beat.pid)
        if abs(process.create_time() - beat.created) > 1.0:
            return "gone"
        if process.status() == psutil.STATUS_STOPPED:
            process.kill()
            return "stopped"
        if must_end:
            os.kill(beat.pid, signal.SIGUSR1)
            time.sleep(DUMP_WITHIN_S)
            process.kill()
            return "hung"
    except (psutil.NoSuchProcess, ProcessLookupError):
        return "gone"
    return "busy"


def note_path(folder: Path, name: str) -> Path:
    """Where a role writes down its process, for who has to find it before it has ever answered."""
    return folder / "logs" / f"{name}.process.json"


def read_note(folder: Path, name: str) -> Beat | None:
    """The process that a role was in last; None where its node has a folder of its own."""
    try:
        return Beat(**json.loads(note_path(folder, name).read_text()))
    except (OSError, ValueError, TypeError):
        return None
