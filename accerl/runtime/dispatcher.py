"""Hands out episodes and rules of batches as `Admission` allows, and lets those wait who may not go on yet."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Sequence
from contextlib import suppress
from typing import Any

from accerl.admission import Admission
from accerl.types import BatchRule, Episode, EpisodePlan


class Dispatcher:
    """`Admission` for many askers at once. Every change wakes all of them.

    Args:
        events: that some asker may have seen.
    """

    def __init__(self, admission: Admission, events: int = 0):
        self.admission = admission
        self._leaving: set[str] = set()
        self._paused = False
        self._events = events
        self._changed = asyncio.Condition()

    @property
    def is_paused(self) -> bool:
        return self._paused

    def finish(self, episodes: Sequence[Episode]) -> list[Episode]:
        """Take episodes that were played to their ends; returns those that had not been given up before."""
        return [episode for episode in episodes if self.admission.finish(episode)]

    def content(self) -> dict[str, Any]:
        """JSON-compatible: everything, for one that takes over while the run goes on."""
        return {
            "admission": self.admission.content(),
            "leaving": sorted(self._leaving),
            "paused": self._paused,
        }

    def load(self, content: dict[str, Any]) -> None:
        """Go on with what another one held."""
        self.admission.load(content["admission"])
        self._leaving, self._paused = set(content["leaving"]), content["paused"]

    async def next_episode(self, worker: str, ask: int = 0) -> EpisodePlan | None:
        """What a slot of `worker` plays next, once it may start; None if the worker is to leave."""
        async with self._changed:
            self._wake()  # the slot has ended an episode
            while not self._leaving.intersection((worker, role_of(worker))):
                plan = None if self._paused else self.admission.start(worker, ask)
                if plan is not None:
                    return plan
                await self._changed.wait()
        return None

    async def deliver(self, number: int, version: int) -> None:
        """A segment of an episode that goes on is in the replay."""
        async with self._changed:
            self.admission.deliver(number, version)
            self._wake()

    async def rule(self, batch: int, seen: int, timeout_s: float) -> tuple[BatchRule, int]:
        """What the batch is made of, and the number of events so far, once that is above `seen` or time is up."""
        async with self._changed:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._changed.wait_for(lambda: self._events > seen), timeout_s)
            return self.admission.rule(batch), self._events

    async def train(self, version: int, episodes: Collection[int]) -> None:
        async with self._changed:
            self.admission.train(version, episodes)
            self._wake()

    async def serve(self, service: str, version: int) -> None:
        async with self._changed:
            self.admission.serve(service, version)
            self._wake()

    async def unserve(self, service: str) -> None:
        async with self._changed:
            self.admission.unserve(service)
            self._wake()

    async def lose(self, worker: str) -> int:
        """The worker is gone with what it played; calls of it that still wait get nothing."""
        async with self._changed:
            self._leaving.add(worker)
            lost = self.admission.lose(worker)
            self._wake()
        return lost

    async def fail(self, number: int) -> None:
        """The environment of an episode has raised."""
        async with self._changed:
            self.admission.fail(number)
            self._wake()

    async def lose_waiting(self, episodes: Collection[int]) -> None:
        """The shard that held these, which wait to be trained on, is gone."""
        async with self._changed:
            self.admission.lose_waiting(episodes)
            self._wake()

    async def pause(self, paused: bool) -> None:
        """Whether to hand out no episode."""
        async with self._changed:
            self._paused = paused
            self._wake()

    async def leave(self, role: str) -> None:
        """Give the workers of this role nothing more: it ends when it has played what it has."""
        async with self._changed:
            self._leaving.add(role)
            self._wake()

    async def resize(self, num_slots: int) -> None:
        """There are other workers than before."""
        async with self._changed:
            self.admission.num_slots = num_slots
            self._wake()

    def _wake(self) -> None:
        self._events += 1
        self._changed.notify_all()


def role_of(worker: str) -> str:
    """`rollout-3` of `rollout-3.1`, its worker after one restart."""
    return worker.partition(".")[0]
