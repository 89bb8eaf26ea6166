"""`accerl` commands in processes of their own."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path

from accerl.console import say

STOP_WITHIN_S = 10.0
"""For a command that is interrupted."""


def run_commands(commands: Sequence[Sequence[str]], at_once: int = 1, log: Path | None = None) -> None:
    """Run `accerl` commands in processes of their own.

    Args:
        at_once: processes at a time.
        log: file for what they print, which several at a time would mix up on the screen.

    Raises:
        SystemExit: one failed, with its exit code; it has said why.
    """
    waiting = deque(commands)
    running: list[subprocess.Popen[bytes]] = []
    output = None if log is None else log.open("w")
    try:
        while waiting or running:
            while waiting and len(running) < at_once:
                command = waiting.popleft()
                say(f"$ accerl {shlex.join(command)}")
                # A session of its own: the terminal interrupts this process only, which then ends the others in order.
                process = [sys.executable, "-m", "accerl.cli", *command]
                running.append(subprocess.Popen(process, stdout=output, start_new_session=True))
            time.sleep(0.1)
            if failed := [process.returncode for process in running if process.poll()]:
                raise SystemExit(max(1, failed[0]))
            still = [process for process in running if process.returncode is None]
            if log is not None and len(still) < len(running):
                say(f"{len(commands) - len(waiting) - len(still)} of {len(commands)} done")
            running = still
    finally:
        for process in running:
            process.terminate()
        for process in running:
            try:
                process.wait(STOP_WITHIN_S)
            except subprocess.TimeoutExpired:
                process.kill()
        if output is not None:
            output.close()


def num_processes(wanted: int | None, by_default: bool) -> int:
    """Worker processes; if nothing is said, one a core, or none: everything in this process."""
    if wanted is not None:
        return wanted
    return len(os.sched_getaffinity(0)) if by_default else 0
