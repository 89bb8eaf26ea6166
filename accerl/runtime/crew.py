"""The roles of a run at work: started, watched, replaced, added to and taken from while it goes on."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError

from accerl.calls import LostCall
from accerl.config import ConfigError, RunConfig, suggest
from accerl.replay.snapshot import Checkpoint
from accerl.runtime.actors.role import Wiring
from accerl.runtime.board import Board
from accerl.runtime.dispatcher import Dispatcher
from accerl.runtime.failures import Failures
from accerl.runtime.group_board import GroupBoard
from accerl.runtime.heartbeats import Heartbeats
from accerl.runtime.nodes import SOON_S, Nodes
from accerl.runtime.placement import Roles, health
from accerl.runtime.ports import Directory
from accerl.runtime.supervisor import Incidents, Supervisor

ELASTIC = ("rollout", "inference", "replay")
"""Kinds that can be scaled."""
LEARNER = "learner-0"
NEWS_WITHIN_S = 1.0
"""Until all clients know that a service is about to leave; one that does not asks again elsewhere."""
LOOK_EVERY_S = 0.5
TOLD_WITHIN_S = 2.0
"""Of an update that was made, by the learner."""
ANNOUNCED_WITHIN_S = 2.0
"""By those that are well, to a controller that takes over."""


class Crew:
    """Keeps the directory of who is there. A role that leaves is let go only when nobody needs it any more.

    Args:
        before: `facts` of the controller before, whose roles are at work; None: they are to be started.
        above: numbers of the directory that somebody may have seen.
        here: node of the controller.
        updates: gives those that the learner has made, without what it lost by going back.
        on_change: called when `facts` have changed.
    """

    roles: Roles
    directory: Board[Directory]

    def __init__(
        self,
        config: RunConfig,
        dispatcher: Dispatcher,
        incidents: Incidents,
        failures: Failures,
        group: GroupBoard,
        before: Mapping[str, Any] | None,
        above: int,
        here: str,
        updates: Callable[[], int],
        on_change: Callable[[], None],
    ):
        self.directory = Board(Directory(taking={}, giving={}, services={}), above)
        self._config = config
        self._before = before
        self._updates = updates
        self._furthest: dict[str, int] = {}  # updates, when one of the trainer failed
        self._changed = on_change
        self._heartbeats = Heartbeats(config.folder, config.supervision, here)
        self._supervisor = Supervisor(
            incidents,
            self._heartbeats,
            lambda name: self.roles[name],
            config.supervision.start_s,
            self._has_moved,
            self._on_failure,
            self._on_return,
            self._remake,
            {} if before is None else before["incarnations"],
        )
        self._nodes = Nodes(here, () if before is None else before["left_out"], living_nodes)
        self._dispatcher = dispatcher
        self._incidents = incidents
        self._failures = failures
        self._group = group
        self._is_open = False  # nobody is told of a directory that is not complete
        self._watches: dict[str, asyncio.Task[None]] = {}
        self._leaving: dict[str, asyncio.Task[None]] = {}
        self._forgetting: asyncio.Task[None] | None = None
        self._failed_on: dict[str, str | None] = {}

    @property
    def learner(self) -> Any:
        return self.roles[LEARNER]

    def facts(self) -> dict[str, Any]:
        """JSON-compatible: what it takes to take over from another process."""
        return {
            "wiring": self._wiring.facts(),
            "roles": self.roles.facts() if hasattr(self, "roles") else None,
            "incarnations": self._supervisor.incarnations,
            "leaving": list(self._leaving),
            "left_out": sorted(self._nodes.left_out),
        }

    async def start(self, start: Path, controller: Any, private: Path, checkpoint: Checkpoint) -> None:
        """Place everybody, or find them. Raises what a constructor raised."""
        before = self._before
        found = None if before is None else before["roles"]
        if before is None:
            self._wiring = Wiring.new(controller, start, private, checkpoint)
            self._changed()  # whoever takes over from here on has the same keys
        else:
            self._wiring = Wiring.of(before["wiring"], controller)
        self.roles = Roles(self._config, self._wiring, found)
        shards = self.roles.of("replay")
        leaving = () if before is None else before["leaving"]
        self.directory.value = replace(
            self.directory.value,
            taking={name: shard for name, shard in shards.items() if name not in leaving},
            giving=shards,
            imagined=self.roles.imagined(),
            observers=self.roles.observers(),
        )
        if found is None:
            await self.roles.wait_until_ready(self._config.supervision.start_s)
        else:
            calls = [actor.announce.remote() for _, actor in self.roles.named()]
            await asyncio.to_thread(ray.wait, calls, num_returns=len(calls), timeout=ANNOUNCED_WITHIN_S)
        self._is_open = True
        await self.directory.post(self.directory.value)
        self._changed()

    async def work(self, *others: asyncio.Task[Any]) -> None:
        """Until the learner has done its last update and saved it. Raises what a role, or one of `others`, raised."""
        heartbeats = asyncio.create_task(self._heartbeats.watch(self.roles.named))
        others = (*others, heartbeats)
        for name, _ in self.roles.named():
            self._watch(name)
        for name in [] if self._before is None else self._before["leaving"]:
            if name in self._watches:
                self._leaving[name] = asyncio.create_task(self._retire(name))
        try:
            await self._work(others)
        finally:
            heartbeats.cancel()

    async def _work(self, others: Sequence[asyncio.Task[Any]]) -> None:
        learner = self._watches[LEARNER]
        while not learner.done():
            tasks = {*others, *self._watches.values(), *self._leaving.values()}
            done, _ = await asyncio.wait(tasks, timeout=LOOK_EVERY_S, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
            self._watches = {name: task for name, task in self._watches.items() if not task.done() or name == LEARNER}
            self._leaving = {name: task for name, task in self._leaving.items() if not task.done()}
        learner.result()

    def save_replay(self) -> None:
        """Let every shard write a snapshot, beside its work."""
        for shard in self.directory.value.giving.values():
            shard.snapshot.remote()

    def end(self) -> None:
        for task in (*self._watches.values(), *self._leaving.values()):
            task.cancel()
        if hasattr(self, "roles"):
            self.roles.kill()

    async def join(self, service: str, endpoint: Any) -> None:
        """The service can be asked from now on."""
        if service not in self._leaving:
            now = self.directory.value
            self.directory.value = replace(now, services={**now.services, service: endpoint})
            if self._is_open:
                await self.directory.post(self.directory.value)

    async def scale(self, changes: dict[str, int]) -> dict[str, int]:
        """Add or remove processes of a kind, the newest first; returns how many of each there will be.

        New ones are ready when this returns; those that leave finish what they have begun.

        Raises:
            ConfigError: an unknown kind, or fewer than one left of it.
        """
        staying = {kind: [name for name in self.roles.of(kind) if name not in self._leaving] for kind in ELASTIC}
        for kind, change in changes.items():
            if kind not in ELASTIC:
                raise ConfigError(f"scale: {kind} cannot be scaled while running; {suggest(kind, list(ELASTIC))}")
            if kind == "replay" and self._config.objective.advantages == "group":
                raise ConfigError("scale: a group must come together in one replay shard; scale something else")
            if len(staying[kind]) + change < 1:
                raise ConfigError(f"scale: {kind}={change:+d} would leave none of {len(staying[kind])}; keep one")
        for kind, change in changes.items():
            added = [self.roles.add(kind, self._nodes.left_out) for _ in range(change)]
            await self._settle_in(added)
            staying[kind] += added
            for _ in range(-change):
                name = staying[kind].pop()
                self._leaving[name] = asyncio.create_task(self._retire(name))
            self._changed()
        await self._dispatcher.resize(len(staying["rollout"]) * self._config.rollout.slots_per_worker)
        return {kind: len(names) for kind, names in staying.items()}

    async def _settle_in(self, names: list[str]) -> None:
        try:
            await asyncio.gather(*(health(self.roles[name]) for name in names))
        except RayError as error:
            for name in names:
                self.roles.remove(name)
            raise ConfigError(f"scale: the new process could not be made ({str(error).splitlines()[-1]})") from None
        await self._open({name: self.roles[name] for name in names if name.startswith("replay")})
        for name in names:
            self._watch(name)

    async def _open(self, shards: dict[str, Any]) -> None:
        now = self.directory.value
        if shards:
            await self.directory.post(replace(now, taking={**now.taking, **shards}, giving={**now.giving, **shards}))

    def _watch(self, name: str) -> None:
        self._watches[name] = self._supervisor.begin(name)
        self._changed()

    async def _retire(self, name: str) -> None:
        """Let go of a role once it has finished what it had begun."""
        kind = name.split("-")[0]
        retire: dict[str, Callable[[str], Awaitable[None]]] = {
            "rollout": self._dispatcher.leave,
            "inference": self._retire_service,
            "replay": self._retire_shard,
        }
        await retire[kind](name)
        await self._watches[name]
        self.roles.remove(name)
        self._changed()

    async def _retire_service(self, name: str) -> None:
        await self._drop_service(name)
        await asyncio.sleep(NEWS_WITHIN_S)
        await self.roles[name].leave.remote()

    async def _retire_shard(self, name: str) -> None:
        """Nobody gives it anything more, the learner takes what it has."""
        now = self.directory.value
        await self.directory.post(replace(now, taking=_without(now.taking, name)))
        closed = False
        while not closed:
            await asyncio.sleep(LOOK_EVERY_S)
            try:
                closed = await self.roles[name].close.remote()
            except RayError:
                continue  # it is being restarted
        now = self.directory.value
        await self.directory.post(replace(now, giving=_without(now.giving, name)))

    async def _drop_service(self, name: str) -> None:
        now = self.directory.value
        if name in now.services:
            await self.directory.post(replace(now, services=_without(now.services, name)))
        await self._dispatcher.unserve(name)
        self._group.leave(name)

    def _has_moved(self, name: str, worked_s: float) -> bool:
        """Since its last failure: the trainer moves with the run's updates, each of the others by itself."""
        if name.split("-")[0] not in ("learner", "rank"):
            return worked_s > SOON_S
        updates, before = self._updates(), self._furthest.get(name, 0)
        self._furthest[name] = max(updates, before)
        return updates > before

    async def _on_failure(self, name: str, incarnation: int) -> None:
        """What a role had in hand goes to others."""
        match name.split("-")[0]:
            case "rollout":
                await self._dispatcher.lose(f"{name}.{incarnation}")
            case "inference":
                await self._drop_service(name)
        self._failed_on[name] = self._heartbeats.node(name)
        self._changed()

    def _blame(self, node: str | None, worked_s: float) -> None:
        """A role has failed on a node, not inside a task's environment; if that goes on, all leave the node."""
        if node is None or not self._nodes.failed(node, worked_s):
            return
        there = [name for name, _ in self.roles.named() if self._heartbeats.node(name) == node]
        what = f"processes on node {node[:12]} ended again and again soon after their start: {', '.join(there)}"
        self._incidents.add("controller", what, "the node is left out for the rest of the run")
        for name in there:
            self._heartbeats.expect(name, "its node is left out")
            ray.kill(self.roles[name])

    async def _remake(self, name: str) -> None:
        """Another actor in the place of one; whoever knew that one is told."""
        self._blame(self._heartbeats.node(name), worked_s=0.0)
        self.roles.remake(name, self._nodes.left_out)
        now, actor = self.directory.value, self.roles[name]
        known = {field: getattr(now, field) for field in ("taking", "giving", "imagined", "observers")}
        renewed = {field: {**roles, name: actor} for field, roles in known.items() if name in roles}
        if renewed:
            await self.directory.post(replace(now, **renewed))
        self._changed()

    async def _on_return(self, name: str, incarnation: int, failed_at: float, worked_s: float) -> bool:
        """Whether the process ended inside the environment of a task."""
        self._changed()
        if name.startswith("replay-"):
            self._forgetting = asyncio.create_task(self.forget_lost())
        of_tasks = name.startswith("rollout-") and await self._blame_tasks(name, incarnation, failed_at)
        if not of_tasks:
            self._blame(self._failed_on[name], worked_s)
        return of_tasks

    async def _blame_tasks(self, name: str, incarnation: int, failed_at: float) -> bool:
        try:
            lost: list[LostCall] = await self.roles[name].lost_calls.remote(incarnation)
        except RayError:
            return False
        for call in lost:
            self._failures.add_lost(name, call, failed_at)
        return any(call.task is not None for call in lost)

    async def forget_lost(self) -> None:
        """Episodes that no shard holds will never be trained on: nothing is to wait for them.

        An update whose end a shard has heard of already is known here a moment later.
        """
        waiting = self._dispatcher.admission.waiting
        held: set[int] = set()
        for shard in self.directory.value.giving.values():
            try:
                held.update(await shard.episodes.remote())
            except RayError:
                return  # it has failed, and is asked when it is back
        await asyncio.sleep(TOLD_WITHIN_S)
        await self._dispatcher.lose_waiting(waiting - held)


def living_nodes() -> set[str]:
    """Of the cluster."""
    return {node["NodeID"] for node in ray.nodes() if node["Alive"]}


def _without(members: Any, name: str) -> dict[str, Any]:
    return {key: value for key, value in members.items() if key != name}
