"""Faults on purpose: a live run is struck at seeded times, and what becomes of it.

plan ─► Fault, Fault, … ─► strikes ─► over? decisions and updates again? ─► Outcome
"""

from __future__ import annotations

import random
import time
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import NamedTuple

from accerl.config import ConfigError, suggest
from accerl.runtime.run import Run
from accerl.runtime.strikes import Strike, possible, processes, strike

LOOK_EVERY_S = 0.25
GIVE_UP_AFTER_S = 180.0
COUNTED = {"learner": "updates_made", "rank": "updates_made", "disk": "decisions"}
"""What the run must count again after one of these was met. Workers and shards must have played and taken decisions
themselves; services are back when the workers know them, and the controller when it answers: whether they are asked for
anything is up to others."""
ASKED = ("inference-", "controller")


class Fault(NamedTuple):
    """What is done, and when."""

    at_s: float
    """Seconds after the beginning."""
    kind: str
    """One of `strikes.possible`."""
    pick: float
    """Which of the processes of that role, in [0, 1)."""


class Outcome(NamedTuple):
    """What became of a fault."""

    fault: Fault
    role: str
    """What it met: processes `KIND-NUMBER`, or the disk."""
    recovered_s: float | None
    """Until others had their places, or they had theirs back, and did what they are there for (`COUNTED`); None: never.
    Other faults may be under way."""

    @property
    def is_of_trainer(self) -> bool:
        """The learner or a rank of it was met."""
        return any(map(_trains, self.role.split(", ")))


def kinds_of(run: Run, wanted: Sequence[str] = ()) -> tuple[str, ...]:
    """Those that are wanted, or all that fit the run.

    Raises:
        ConfigError: one that does not fit, or no process of the run is on this machine.
    """
    there = possible(run.folder)
    for kind in wanted:
        if kind not in there:
            raise ConfigError(f"kinds: {kind!r} does not fit this run; {suggest(kind, list(there))}")
    return tuple(wanted) or there


def plan(seconds: float, every_s: float, seed: int, kinds: Sequence[str]) -> list[Fault]:
    """Faults of all kinds by turns, in an order and at times that follow from the seed."""
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

    While the disk is full nothing else is done: a shard that ends then has lost what came meanwhile. While the trainer
    recovers, none of its processes is met: what follows from which could not be told.

    Raises:
        RuntimeError: the run has ended.
    """
    began = time.monotonic()
    waiting = list(faults)
    under_way: list[_Watch] = []
    while waiting or under_way:
        met = frozenset().union(*(watch.strike.met for watch in under_way))
        if waiting and time.monotonic() - began >= waiting[0].at_s and "disk" not in met:
            struck = strike(run.folder, waiting[0].kind, waiting[0].pick, met | _others_of_trainer(run, met))
            if struck is not None:
                under_way.append(_Watch(run, waiting.pop(0), struck))
        for watch in list(under_way):
            if (outcome := watch.look()) is not None:
                under_way.remove(watch)
                yield outcome
        if (state := run.status())["state"] != "running":
            raise RuntimeError(f"{run.name} is {state['state']}: {state['reason']}")
        time.sleep(LOOK_EVERY_S)


def _others_of_trainer(run: Run, met: Collection[str]) -> frozenset[str]:
    return frozenset(filter(_trains, processes(run.folder))) if any(map(_trains, met)) else frozenset()


def _trains(role: str) -> bool:
    return role.startswith(("learner-", "rank-"))


class _Watch:
    """Looks whether a strike is over, and whether the run goes on after it."""

    def __init__(self, run: Run, fault: Fault, struck: Strike):
        self.strike = struck
        self._run = run
        self._fault = fault
        self._began = time.monotonic()
        self._before: dict[str, float] | None = None

    def look(self) -> Outcome | None:
        """None while it is not known."""
        passed_s = time.monotonic() - self._began
        outcome = Outcome(self._fault, ", ".join(sorted(self.strike.met)), passed_s)
        if self._before is None:
            self._before = self._progress() if self.strike.is_over() else None
        elif (now := self._progress()) is not None and all(self._moved(name, now[name]) for name in now):
            return outcome
        return outcome._replace(recovered_s=None) if passed_s > GIVE_UP_AFTER_S else None

    def _moved(self, name: str, count: float) -> bool:
        assert self._before is not None
        is_new = count not in (0, self._before[name])  # less than before: it was restarted once more
        return is_new or name.startswith(ASKED)

    def _progress(self) -> dict[str, float] | None:
        """Of what was met; None if somebody does not answer."""
        counters = self._run.counters()
        counted = {name: COUNTED.get(name.split("-")[0]) for name in self.strike.met}
        own = [name for name, counter in counted.items() if counter is None and name != "controller"]
        found = self._run.progress_of(own) if own else {}
        if len(found) < len(own):
            return None
        return {**found, **{name: float(counters[counter]) for name, counter in counted.items() if counter is not None}}


def slowest(outcomes: Iterable[Outcome]) -> float | None:
    """The longest recovery; None: one has not recovered, or there is none."""
    found = [outcome.recovered_s for outcome in outcomes]
    return None if not found or None in found else max(found)  # pyright: ignore[reportArgumentType]
