"""What all roles have in common: how they are wired, a log for crashes, a heartbeat, a trace, what they say they did.

A role outlives the process of its controller, whose next one finds it at work, and ends itself where none comes back.
"""

from __future__ import annotations

import asyncio
import faulthandler
import json
import os
import signal
import sys
import threading
import time
import uuid
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayActorError

from accerl.config import RunConfig
from accerl.files import write_file
from accerl.policies import empty_policy
from accerl.private import keep_private
from accerl.protocols import Policy
from accerl.replay.snapshot import Checkpoint
from accerl.runtime.beat import Beat, Finding, examine, note_path, own_beat
from accerl.runtime.requests_zmq import KeyPair
from accerl.trace import Tracer

FLUSH_EVERY_S = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Wiring:
    """What a role needs to reach the others."""

    controller: Any
    sockets: Path
    """Folder of the request sockets; only this user can enter it."""
    start: Path
    """Folder of the policy that the run starts from."""
    policy: dict[str, Any]
    """What `build_policy` makes it from, without its weights."""
    server_keys: KeyPair
    """Of the services, where requests come over the network."""
    client_keys: KeyPair
    """Of the workers, likewise."""
    started: str
    """Differs from one start of the run to the next."""
    checkpoint: Checkpoint
    """That this start goes on from."""

    @classmethod
    def new(cls, controller: Any, start: Path, private: Path, checkpoint: Checkpoint) -> Wiring:
        """Of a run that begins.

        Args:
            private: a folder that only this user can enter.
        """
        return cls(
            controller=controller,
            sockets=private / "sockets",
            start=start,
            policy=json.loads((start / "policy.json").read_text()),
            server_keys=KeyPair.make(),
            client_keys=KeyPair.make(),
            started=uuid.uuid4().hex,
            checkpoint=checkpoint,
        )

    def facts(self) -> dict[str, Any]:
        """JSON-compatible: all but the controller; the keys are secret."""
        return {
            "sockets": str(self.sockets),
            "start": str(self.start),
            "policy": self.policy,
            "server_keys": asdict(self.server_keys),
            "client_keys": asdict(self.client_keys),
            "started": self.started,
            "checkpoint": asdict(self.checkpoint),
        }

    @classmethod
    def of(cls, facts: Mapping[str, Any], controller: Any) -> Wiring:
        """The same again."""
        return cls(
            controller=controller,
            sockets=Path(facts["sockets"]),
            start=Path(facts["start"]),
            policy=facts["policy"],
            server_keys=KeyPair(**facts["server_keys"]),
            client_keys=KeyPair(**facts["client_keys"]),
            started=facts["started"],
            checkpoint=Checkpoint(**facts["checkpoint"]),
        )

    def make_policy(self, config: RunConfig) -> Policy:
        """A policy for the learner's weights; with those of the start only where the learner does not send all."""
        if config.weights.trainable_only:
            from accerl.checkpoint import load_policy

            return load_policy(self.start)
        return empty_policy(self.policy, config.inference.device)


class Role:
    """Base of the actors; the work itself is in `work`."""

    def __init__(self, config: RunConfig, name: str, controller: Any):
        self.name = name
        self._controller = controller
        keep_private()  # of a cluster that was there before, the processes have what `ray start` had
        logs = config.folder / "logs"
        logs.mkdir(parents=True, exist_ok=True)  # on another node the folder may be its own
        self._crash_log_path = logs / f"{name}.crash.log"
        self._crash_log = self._crash_log_path.open("a")
        faulthandler.enable(self._crash_log)
        faulthandler.register(signal.SIGUSR1, self._crash_log)
        self._process = own_beat()
        write_file(note_path(config.folder, name), self._process.to_json())
        self._is_settled = False
        self._working: asyncio.Task[None] | None = None
        self._outliving: asyncio.Task[None] | None = None
        self._last_pulse: int | None = None
        self._last_moved = time.monotonic()
        path = config.folder / "trace" / f"{name}.{os.getpid()}.jsonl"
        enabled = config.trace.enabled
        self.tracer = Tracer(path if enabled else None, name, config.trace.max_events if enabled else 0)
        threading.Thread(target=self._keep_flushing, name="trace", daemon=True).start()

    async def work(self, incarnation: int) -> None:
        """What the role is there for, until it is done."""
        raise NotImplementedError

    async def run(self, incarnation: int) -> None:
        """Returns when the work is done, which is begun once in the life of a process. Raises what it raised."""
        if self._working is None:
            self._working = asyncio.create_task(self.work(incarnation))
            self._outliving = asyncio.create_task(self._end_with_the_run())
        await asyncio.shield(self._working)

    async def is_at_work(self) -> bool:
        """It was told to run, by this controller or one before."""
        return self._working is not None

    async def announce(self) -> None:
        """Tell the controller again what it knows from this role alone."""

    async def beat(self) -> Beat:
        """Which process this is, and for how long its work has not moved."""
        pulse, now = self.pulse(), time.monotonic()
        if pulse is None or pulse != self._last_pulse:
            self._last_pulse, self._last_moved = pulse, now
        if not self._is_settled and (await self.health()).get("progress", 0.0) > 0:
            self._is_settled = True
            yield_to_others()
        return self._process._replace(stalled_s=now - self._last_moved)

    async def look(self, beat: Beat, must_end: bool) -> Finding:
        """At another process on this node, as `examine`."""
        return await asyncio.to_thread(examine, beat, must_end)

    def pulse(self) -> int | None:
        """A number that changes as long as the work moves; None: there is nothing to do."""
        return None

    async def health(self) -> dict[str, float]:
        """Sums since this process started: processor seconds, seconds by span; and the clock beside them. Subclasses
        add `progress`, a count of what they are there for.
        """
        spans = {f"span.{name}": seconds for name, seconds in self.tracer.totals().items()}
        return {"cpu_s": time.process_time(), "time": time.monotonic(), **spans}

    async def flush(self) -> None:
        """Write what the trace holds."""
        self.tracer.flush()

    async def _end_with_the_run(self) -> None:
        """A controller that is restarted is waited for; one that is gone for good leaves nothing to work for."""
        try:
            await self._controller.ended.remote()
        except RayActorError:
            ray.kill(ray.get_runtime_context().current_actor)

    def _keep_flushing(self) -> None:
        while True:
            time.sleep(FLUSH_EVERY_S)
            try:
                self.tracer.flush()
            except OSError as error:  # a full disk must not end the role
                print(f"{self.name}: the trace was not written ({error})", file=sys.stderr)


def yield_to_others(niceness: int = 15) -> None:
    """Have all threads of this process give way on a full machine: to processes that start in the place of others, and
    to the controller. Those that are nicer already stay so; 15 is what Ray's workers have by themselves.
    """
    threads = Path("/proc/self/task")
    for thread in [int(path.name) for path in threads.iterdir()] if threads.exists() else [0]:
        with suppress(ProcessLookupError):  # it has ended
            os.setpriority(os.PRIO_PROCESS, thread, max(niceness, os.getpriority(os.PRIO_PROCESS, thread)))


def node_id() -> str:
    """Of the Ray node that this process is on."""
    return ray.get_runtime_context().get_node_id()
