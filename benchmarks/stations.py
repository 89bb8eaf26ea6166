"""What takes time in the simulation: stations that work off one job after the other, and inference services."""

from __future__ import annotations

import math
from collections.abc import Generator
from dataclasses import dataclass, field
from typing import Any

import simpy

from accerl.config import RunConfig
from accerl.window import RequestQueue, Waiting, Window
from benchmarks.costs import Costs
from benchmarks.devices import Emulation

Process = Generator[simpy.Event, Any, Any]


@dataclass(slots=True)
class Station:
    """Works off its jobs one by one, in the order in which they come."""

    clock: simpy.Environment
    busy_s: float = 0.0
    _free_s: float = field(default=0.0)

    def serve(self, seconds: float) -> simpy.Event:
        """Happens when a job that takes so long and is handed in now is done."""
        now = self.clock.now
        self._free_s = max(now, self._free_s) + seconds
        self.busy_s += seconds
        return self.clock.timeout(self._free_s - now)


class Service:
    """One inference process: its event loop, its window, its devices."""

    def __init__(self, clock: simpy.Environment, name: str, config: RunConfig, emulation: Emulation, costs: Costs):
        self.name = name
        self.version = 0
        self.load = 0
        """Requests that it has not answered."""
        self.busy_s = 0.0
        self.station = Station(clock)
        self._clock, self._emulation, self._request_s = clock, emulation, costs.service_s
        self._queue = RequestQueue(Window.of(config.inference, config.is_lockstep))
        self._arrived = self._clock.event()

    def ask(self, client: str) -> Process:
        """Gives the version that answered."""
        self.load += 1
        yield self.station.serve(self._request_s)
        answer = self._clock.event()
        now = self._clock.now
        self._queue.add([Waiting(now, None, answer, _nobody, client)], now)
        self._notice()
        version = yield answer
        self.load -= 1
        return version

    def expect(self, client: str, num_slots: int) -> None:
        self._queue.expect(client, num_slots)
        self._notice()

    def serve(self) -> Process:
        while True:
            device_was_busy = len(self._queue) > 0
            while (remaining := self._queue.remaining_s(self._clock.now, device_was_busy)) > 0:
                arrived = self._arrived = self._clock.event()
                due = [] if remaining == math.inf else [self._clock.timeout(remaining + 1e-9)]
                yield self._clock.any_of([arrived, *due])
            batch, version = self._queue.take(), self.version
            seconds = self._emulation.act_s(len(batch))
            yield self._clock.timeout(seconds)
            self.busy_s += seconds
            self._queue.learn(len(batch), seconds)
            for waiting in batch:
                waiting.tag.succeed(version)

    def _notice(self) -> None:
        if not self._arrived.triggered:
            self._arrived.succeed()


def _nobody(tags: list[Any], answers: list[Any]) -> None:
    """Answers go to the tags here."""
