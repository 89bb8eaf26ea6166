"""What `chaos` does to a run, one class a kind: it is done when the object is made, and over when `is_over` says so.

kill, stop ─► the process's place is taken by another one        node ─► the same for all that were on it
slow ─► given its time back after a while                        disk ─► the room given back after a while
"""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Collection, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Protocol

import psutil

from accerl.config import ConfigError
from accerl.runtime.beat import Beat, read_note

ROLES = ("rollout", "inference", "replay", "learner", "rank", "controller")
SLOW_S = 5.0
"""For which a process gets a third of its time."""
SLICE_S = 0.1
FULL_S = 5.0
"""For which the disk has no room."""
LARGEST_DISK = 8 * 2**30
"""A larger file system than this is not the run's alone, and is not filled up."""


class Strike(Protocol):
    """One that is under way."""

    met: frozenset[str]
    """Processes that it met, `KIND-NUMBER`."""

    def is_over(self) -> bool:
        """Whether nothing is withheld from the run any more; to be called several times a second."""
        ...


class Ended:
    """A process was killed, or stopped so that it must be."""

    def __init__(self, folder: Path, there: Mapping[str, Beat], number: int):
        self.met = frozenset(there)
        self._folder = folder
        self._there = there
        for beat in there.values():
            with suppress(psutil.NoSuchProcess):
                psutil.Process(beat.pid).send_signal(number)

    def is_over(self) -> bool:
        now = {name: read_note(self._folder, name) for name in self._there}
        return all(
            beat is not None and beat.pid != self._there[name].pid and lives(beat.pid, beat.created)
            for name, beat in now.items()
        )


class Slowed:
    """A process gets a third of its time."""

    def __init__(self, name: str, beat: Beat):
        self.met = frozenset({name})
        self._process = psutil.Process(beat.pid)
        self._until = time.monotonic() + SLOW_S

    def is_over(self) -> bool:
        with suppress(psutil.NoSuchProcess):
            self._process.suspend()
            time.sleep(SLICE_S)
            self._process.resume()
        return time.monotonic() > self._until


class NodeEnded(Ended):
    """A node of the cluster, with all that was on it."""

    def __init__(self, folder: Path, there: Mapping[str, Beat]):
        beats = list(there.values())
        node = raylet(beats[0])
        with suppress(psutil.NoSuchProcess):
            for process in [node, *node.children(recursive=True)]:
                with suppress(psutil.NoSuchProcess):
                    process.kill()
        super().__init__(folder, there, signal.SIGKILL)


class DiskFull:
    """The file system of the run's folder has no room."""

    def __init__(self, folder: Path):
        self.met = frozenset({"disk"})
        self._filler = folder / "chaos.filler"
        self._until = time.monotonic() + FULL_S
        with self._filler.open("wb", buffering=0) as file, suppress(OSError):
            while True:
                if not os.write(file.fileno(), bytes(2**20)):
                    break

    def is_over(self) -> bool:
        if time.monotonic() < self._until:
            return False
        self._filler.unlink(missing_ok=True)
        return True


def strike(folder: Path, kind: str, pick: float, spared: Collection[str]) -> Strike | None:
    """Do it to one of the processes it fits, of which `pick` in [0, 1) chooses; None while there is none.

    Args:
        spared: processes that are left alone.
    """
    how, _, role = kind.partition("-")
    there = processes(folder)
    if kind == "fill-disk":
        return DiskFull(folder)
    if kind == "kill-node":
        nodes = other_nodes(there)
        if not nodes or spared:
            return None
        return NodeEnded(folder, nodes[sorted(nodes)[int(pick * len(nodes))]])
    names = [name for name in sorted(there) if name.split("-")[0] == role and name not in spared]
    if not names:
        return None
    name = names[int(pick * len(names))]
    if how == "slow":
        return Slowed(name, there[name])
    return Ended(folder, {name: there[name]}, signal.SIGKILL if how == "kill" else signal.SIGSTOP)


def possible(folder: Path) -> tuple[str, ...]:
    """Kinds that fit a live run.

    Raises:
        ConfigError: no process of it is on this machine.
    """
    there = processes(folder)
    if not there:
        raise ConfigError(f"run: no process of {folder.name} is on this machine; give the command where they are")
    roles = {name.split("-")[0] for name in there}
    kinds = [f"{how}-{role}" for role in ROLES if role in roles for how in ("kill", "stop", "slow")]
    kinds.remove("slow-controller")
    if other_nodes(there):
        kinds.append("kill-node")
    if shutil.disk_usage(folder).total <= LARGEST_DISK:
        kinds.append("fill-disk")
    return tuple(kinds)


def processes(folder: Path) -> dict[str, Beat]:
    """The live processes of a run on this machine, by role."""
    names = [path.name.removesuffix(".process.json") for path in (folder / "logs").glob("*.process.json")]
    found = {name: read_note(folder, name) for name in names}
    return {name: beat for name, beat in found.items() if beat is not None and lives(beat.pid, beat.created)}


def other_nodes(there: Mapping[str, Beat]) -> dict[str, dict[str, Beat]]:
    """Processes by node, without the controller's, whose end is the run's."""
    here = there["controller"].node if "controller" in there else None
    nodes: dict[str, dict[str, Beat]] = {}
    for name, beat in there.items():
        if here is not None and beat.node != here:
            nodes.setdefault(beat.node, {})[name] = beat
    return nodes


def raylet(beat: Beat) -> psutil.Process:
    """That has started a role's process."""
    return psutil.Process(psutil.Process(beat.pid).ppid())


def lives(pid: int, created: float) -> bool:
    """The process of this number that was started then."""
    with suppress(psutil.NoSuchProcess):
        process = psutil.Process(pid)
        return abs(process.create_time() - created) < 1.0 and process.status() != psutil.STATUS_ZOMBIE
    return False
