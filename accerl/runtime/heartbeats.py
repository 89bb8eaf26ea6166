"""Finds processes that live and do nothing: each is asked every second, and replaced with its stacks kept.

no answer for SUSPECT_AFTER_S ─► looked at on its node ─► stopped ─────────────────────────────────┐
no answer for answer_s, or no progress for stall_s ─► stacks into its crash log ───────────────────┴─► SIGKILL
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from accerl.config import SupervisionConfig
from accerl.runtime.beat import SUSPECT_AFTER_S, Beat, Finding, examine, read_note

ASK_EVERY_S = 1.0
LOOK_WITHIN_S = 15.0
"""For a look at a process on another node."""
NEIGHBOUR_WITHIN_S = 3.0
"""For one by a role that is on that node."""


class Heartbeats:
    """Asks the roles of a run, and ends those that are stopped or hang: Ray restarts what has ended.

    Args:
        here: node of the caller.
    """

    def __init__(self, folder: Path, config: SupervisionConfig, here: str):
        self._folder = folder
        self._config = config
        self._here = here
        self._beats: dict[str, Beat] = {}
        self._last: dict[str, Beat] = {}
        self._asked: dict[str, tuple[float, asyncio.Task[None]]] = {}
        self._looking: dict[str, asyncio.Task[None]] = {}
        self._reasons: dict[str, str] = {}
        self._named: Callable[[], Iterable[tuple[str, Any]]] = tuple

    async def watch(self, named: Callable[[], Iterable[tuple[str, Any]]]) -> None:
        """Until cancelled, those that `named` gives at the time."""
        self._named = named
        while True:
            for name, actor in named():
                self._attend(name, actor)
            await asyncio.sleep(ASK_EVERY_S)

    def reason(self, name: str) -> str | None:
        """Why the process of a role was ended here, told once; None: it ended by itself."""
        return self._reasons.pop(name, None)

    def node(self, name: str) -> str | None:
        """That the process of a role is on, or was; None if it never said so."""
        note = read_note(self._folder, name) or self._last.get(name)
        return None if note is None else note.node

    def expect(self, name: str, reason: str) -> None:
        """The process of a role is about to be ended by the caller."""
        self._reasons[name] = reason

    def _attend(self, name: str, actor: Any) -> None:
        asked_at, asking = self._asked.get(name, (0.0, None))
        if asking is None or asking.done():
            asking = asyncio.create_task(self._ask(name, actor))
            self._asked[name] = time.monotonic(), asking
            return
        silent_s = time.monotonic() - asked_at
        looking = self._looking.get(name)
        if silent_s > SUSPECT_AFTER_S and (looking is None or looking.done()):
            self._looking[name] = asyncio.create_task(
                self._look(name, actor, silent_s > self._config.answer_s, f"no answer for {silent_s:.0f} s")
            )

    async def _ask(self, name: str, actor: Any) -> None:
        try:
            beat: Beat = await actor.beat.remote()
        except RayError:
            self._beats.pop(name, None)
            return
        self._beats[name] = self._last[name] = beat
        if beat.stalled_s > self._config.stall_s:
            await self._look(name, actor, True, f"its work has not moved for {beat.stalled_s:.0f} s")

    async def _look(self, name: str, actor: Any, must_end: bool, what: str) -> None:
        beat = self._beats.get(name) or read_note(self._folder, name)
        if beat is None:
            return
        try:
            finding = await asyncio.wait_for(self._examine(beat, must_end), LOOK_WITHIN_S)
        except (RayError, TimeoutError):  # its node does not answer either
            if must_end:
                self._reasons[name] = f"{what}, nor from its node"
                ray.kill(actor, no_restart=False)
            return
        if finding == "stopped":
            self._reasons[name] = "its process was stopped from outside"
        elif finding == "hung":
            self._reasons[name] = f"{what}; stacks in logs/{name}.crash.log"

    async def _examine(self, beat: Beat, must_end: bool) -> Finding:
        if beat.node == self._here:
            return await asyncio.to_thread(examine, beat, must_end)
        for neighbour in self._neighbours(beat):
            with suppress(RayError, TimeoutError):
                return await asyncio.wait_for(_asked_to_look(neighbour, beat, must_end), NEIGHBOUR_WITHIN_S)
        there: Any = NodeAffinitySchedulingStrategy(beat.node, soft=False)
        options: dict[str, Any] = {"num_cpus": 0, "max_retries": 0, "scheduling_strategy": there}
        return await ray.remote(examine).options(**options).remote(beat, must_end)

    def _neighbours(self, beat: Beat) -> list[Any]:
        """Roles on the same node that answer: they look at once, where a new process would have to start."""
        well = {
            name
            for name, (asked_at, asking) in self._asked.items()
            if asking.done() or time.monotonic() - asked_at < SUSPECT_AFTER_S
        }
        there = {name for name, other in self._beats.items() if other.node == beat.node and other.pid != beat.pid}
        return [actor for name, actor in self._named() if name in well & there]


async def _asked_to_look(actor: Any, beat: Beat, must_end: bool) -> Finding:
    return await actor.look.remote(beat, must_end)
