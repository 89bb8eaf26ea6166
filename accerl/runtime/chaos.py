"""Faults on purpose: processes of a live run are killed, stopped and slowed at seeded times, and what becomes of it.

plan ─► Fault, Fault, … ─► signals to the processes that the run's folder names ─► replaced? at work again? ─► Outcome
"""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import psutil

from accerl.config import ConfigError, suggest
from accerl.runtime.beat import Beat, read_note
from accerl.runtime.run import Run

HOWS = ("kill", "stop", "slow")
ROLES = ("rollout", "inference", "replay", "learner", "controller")
KINDS = tuple(f"{how}-{role}" for role in ROLES for how in HOWS if (how, role) != ("slow", "controller"))
SLOW_S = 5.0
"""For which a process gets a third of its time."""
SLICE_S = 0.1
LOOK_EVERY_S = 0.25
GIVE_UP_AFTER_S = 180.0


class Fault(NamedTuple):
    """What is done, and when."""

    at_s: float
    """Seconds after the beginning."""
    kind: str
    """One of `KINDS`."""
    pick: float
    """Which of the processes of that role, in [0, 1)."""


class Outcome(NamedTuple):
    """What became of a fault."""

    fault: Fault
    role: str
    """The process that it met, `KIND-NUMBER`."""
    recovered_s: float | None
    """Until another process had its place, and decisions and updates were made after that; None: never."""


def plan(seconds: float, every_s: float, seed: int, kinds: Sequence[str] = KINDS) -> list[Fault]:
    """Faults of all kinds by turns, in an order and at times that follow from the seed.

    Raises:
        ConfigError: an unknown kind.
    """
    for kind in kinds:
        if kind not in KINDS:
            raise ConfigError(f"kinds: there is no {kind!r}; {suggest(kind, list(KINDS))}")
    chance = random.Random(seed)
    faults: list[Fault] = []
    turn: list[str] = []
    at_s = every_s * chance.uniform(0.5, 1.0)
    while at_s < seconds:
        if not turn:
            turn = list(kinds)
            chance.shuffle(turn)
        faults.append(Fault(at_s, turn.pop(), chance.random()))
        at_s += every_s * chance.uniform(0.5, 1.5)
    return faults


def unleash(run: Run, faults: Sequence[Fault]) -> Iterator[Outcome]:
    """Do what the plan says to a run on this machine, and give each outcome once it is known.

    Raises:
        RuntimeError: the run has ended.
    """
    began = time.monotonic()
    waiting = list(faults)
    under_way: list[_Watch] = []
    while waiting or under_way:
        now = time.monotonic() - began
        if waiting and now >= waiting[0].at_s and (watch := _strike(run, waiting[0], under_way)) is not None:
            waiting.pop(0)
            under_way.append(watch)
        for watch in list(under_way):
            if (outcome := watch.look()) is not None:
                under_way.remove(watch)
                yield outcome
        if (state := run.status())["state"] != "running":
            raise RuntimeError(f"{run.name} is {state['state']}: {state['reason']}")
        time.sleep(LOOK_EVERY_S)


def processes(folder: Path) -> dict[str, Beat]:
    """The live processes of a run on this machine, by role."""
    names = [path.name.removesuffix(".process.json") for path in (folder / "logs").glob("*.process.json")]
    found = {name: read_note(folder, name) for name in names}
    return {name: beat for name, beat in found.items() if beat is not None and _lives(beat)}


def _strike(run: Run, fault: Fault, under_way: Sequence[_Watch]) -> _Watch | None:
    """None while no process of that role is there that is not at fault already."""
    how, _, role = fault.kind.partition("-")
    met = {watch.role for watch in under_way}
    there = {
        name: beat
        for name, beat in sorted(processes(run.folder).items())
        if name.split("-")[0] == role and name not in met
    }
    if not there:
        return None
    name = list(there)[int(fault.pick * len(there))]
    process = psutil.Process(there[name].pid)
    with suppress(psutil.NoSuchProcess):
        match how:
            case "kill":
                process.kill()
            case "stop":
                process.send_signal(signal.SIGSTOP)
    return _Watch(run, fault, name, there[name], process if how == "slow" else None)


class _Watch:
    """Looks whether the place of a process was taken, and whether the run goes on.

    Args:
        slowed: the process, if it is only to be slowed for a while.
    """

    def __init__(self, run: Run, fault: Fault, role: str, beat: Beat, slowed: psutil.Process | None):
        self.role = role
        self._run = run
        self._fault = fault
        self._beat = beat
        self._slowed = slowed
        self._began = time.monotonic()
        self._counts: dict[str, int] | None = None

    def look(self) -> Outcome | None:
        """None while it is not known."""
        passed_s = time.monotonic() - self._began
        if self._slowed is not None and passed_s < SLOW_S:
            self._slow()
            return None
        if self._counts is None:
            if self._is_replaced():
                self._counts = _counts(self._run)
        elif all(new > old for new, old in zip(_counts(self._run).values(), self._counts.values(), strict=True)):
            return Outcome(self._fault, self.role, passed_s)
        return Outcome(self._fault, self.role, None) if passed_s > GIVE_UP_AFTER_S else None

    def _slow(self) -> None:
        assert self._slowed is not None
        with suppress(psutil.NoSuchProcess):
            self._slowed.suspend()
            time.sleep(SLICE_S)
            self._slowed.resume()

    def _is_replaced(self) -> bool:
        if self._slowed is not None:
            return True
        now = read_note(self._run.folder, self.role)
        return now is not None and now.pid != self._beat.pid and _lives(now)


def _counts(run: Run) -> dict[str, int]:
    counters = run.counters()
    return {name: counters[name] for name in ("decisions", "updates_made")}


def _lives(beat: Beat) -> bool:
    with suppress(psutil.NoSuchProcess):
        process = psutil.Process(beat.pid)
        return abs(process.create_time() - beat.created) < 1.0 and process.status() != psutil.STATUS_ZOMBIE
    return False


def summarised(outcomes: Sequence[Outcome], slowest: Callable[[str], bool]) -> float | None:
    """The longest recovery of those whose role `slowest` picks; None: one has not recovered, or there is none."""
    found = [outcome.recovered_s for outcome in outcomes if slowest(outcome.role)]
    return None if not found or None in found else max(found)  # pyright: ignore[reportArgumentType]
