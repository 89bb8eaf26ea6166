"""What all roles have in common: how they are wired, a log for crashes, a trace, a reading of what they did."""

from __future__ import annotations

import faulthandler
import os
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray

from accerl.config import RunConfig
from accerl.policies import empty_policy
from accerl.protocols import Policy
from accerl.replay.snapshot import Checkpoint
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

    def make_policy(self, config: RunConfig) -> Policy:
        """A policy for the learner's weights; with those of the start only where the learner does not send all."""
        if config.weights.trainable_only:
            from accerl.checkpoint import load_policy

            return load_policy(self.start)
        return empty_policy(self.policy, config.inference.device)


class Role:
    """Base of the actors."""

    def __init__(self, config: RunConfig, name: str):
        self.name = name
        logs = config.folder / "logs"
        logs.mkdir(parents=True, exist_ok=True)  # on another node the folder may be its own
        self._crash_log_path = logs / f"{name}.crash.log"
        self._crash_log = self._crash_log_path.open("a")
        faulthandler.enable(self._crash_log)
        path = config.folder / "trace" / f"{name}.{os.getpid()}.jsonl"
        enabled = config.trace.enabled
        self.tracer = Tracer(path if enabled else None, name, config.trace.max_events if enabled else 0)
        threading.Thread(target=self._keep_flushing, name="trace", daemon=True).start()

    async def health(self) -> dict[str, float]:
        """Sums since this process started: processor seconds, seconds by span; and the clock beside them."""
        spans = {f"span.{name}": seconds for name, seconds in self.tracer.totals().items()}
        return {"cpu_s": time.process_time(), "time": time.monotonic(), **spans}

    async def flush(self) -> None:
        """Write what the trace holds."""
        self.tracer.flush()

    def _keep_flushing(self) -> None:
        while True:
            time.sleep(FLUSH_EVERY_S)
            try:
                self.tracer.flush()
            except OSError as error:  # a full disk must not end the role
                print(f"{self.name}: the trace was not written ({error})", file=sys.stderr)


def node_id() -> str:
    """Of the Ray node that this process is on."""
    return ray.get_runtime_context().get_node_id()
