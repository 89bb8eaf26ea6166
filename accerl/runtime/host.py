"""The process a run lives in: starts the cluster and the controller, and ends both.

    python -m accerl.runtime.host FOLDER [--owner PID]

SIGTERM and SIGINT save a checkpoint and end the run; so does the end of the owner.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import socket
import sys
import threading
import time
import traceback
from pathlib import Path
from types import FrameType
from typing import Any

from accerl import companions
from accerl.checkpoint import recover, save_policy
from accerl.config import ConfigError, RunConfig
from accerl.private import keep_private, temporary_folder
from accerl.runtime import cluster
from accerl.runtime.beat import SUSPECT_AFTER_S, Beat, examine
from accerl.runtime.preflight import start_policy
from accerl.runtime.run import started, write_status
from accerl.timeline import write_chrome_trace

STOP_WITHIN_S = 8.0
"""For the learner to finish its update and begin to save."""
SAVES_WITHIN_S = 60.0
"""From one sign of a checkpoint that is being written to the next."""


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--owner", type=int)
    arguments = parser.parse_args()
    keep_private()
    folder: Path = arguments.folder.resolve()  # actors of a cluster that runs already have another working directory
    config = RunConfig.load(folder / "config.json", {"root": folder.parent, "name": folder.name})
    stop = threading.Event()
    stop_on_signal(stop)
    here = {"host": socket.gethostname(), "host_pid": os.getpid(), "host_started": started(os.getpid())}
    write_status(folder, {"state": "starting", "reason": "", **here})
    try:
        state = _host(config, stop, arguments.owner)
    except Exception as error:
        traceback.print_exc()
        reason = str(error) if isinstance(error, ConfigError) else f"{type(error).__name__}: {error}"
        write_status(folder, {"state": "failed", "reason": reason.splitlines()[0]})
        state = "failed"
    finally:
        (folder / "connection.json").unlink(missing_ok=True)
    if state == "finished" and config.trace.enabled:
        write_chrome_trace(folder)
    return 0 if state == "finished" else 1


def stop_on_signal(stop: threading.Event) -> None:
    """Have the signals that end a process set `stop` instead; again after Ray, which puts its own handlers there."""

    def ask_to_stop(number: int, frame: FrameType | None) -> None:
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, ask_to_stop)


def _host(config: RunConfig, stop: threading.Event, owner: int | None) -> str:
    damaged = recover(config.folder / "checkpoints").report()
    damaged += companions.recover(config.folder / "world", config.folder / "checkpoints")
    start = config.folder / "start"
    if not start.exists():
        policy = start_policy(config)
        save_policy(start, policy.config_dict(), policy.state_dict())
    if stop.is_set():
        write_status(config.folder, {"state": "finished", "reason": "stopped before it started"})
        return "finished"
    private = temporary_folder()
    state = "failed"
    try:
        state = _run(config, stop, owner, private, start, damaged)
    finally:
        import ray

        ray.shutdown()
        if state != "finished":
            cluster.keep_logs(private, config.folder)
        shutil.rmtree(private, ignore_errors=True)
    return state


def _run(
    config: RunConfig, stop: threading.Event, owner: int | None, private: Path, start: Path, damaged: list[str]
) -> str:
    address, token_path = cluster.start(config.cluster, config.folder, private)
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    from accerl.runtime.controller import Controller
    from accerl.runtime.supervisor import Incidents

    incidents = Incidents(config.folder)
    for sentence in damaged:
        print(sentence, file=sys.stderr, flush=True)
        incidents.add("host", sentence, "the one before is used")
    stop_on_signal(stop)
    name = f"{config.name}/controller"
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)  # with the folder
    kind: Any = ray.remote(Controller)
    options = {"max_restarts": -1, "max_task_retries": -1, "num_cpus": 0, "scheduling_strategy": here}
    actor = kind.options(name=name, **options).remote(config, start, private)
    finished = actor.run.remote()
    watch = ControllerWatch(actor, config.supervision.answer_s)
    cluster.Connection(
        address=address,
        controller=name,
        token_path=token_path,
        host=socket.gethostname(),
        host_pid=os.getpid(),
    ).save(config.folder)
    deadline = None
    while True:
        done, _ = ray.wait([finished], timeout=0.2)
        if done:
            return ray.get(finished)
        watch.look()
        if deadline is None and (stop.is_set() or (owner is not None and not _alive(owner))):
            actor.stop.remote()
            deadline = time.monotonic() + STOP_WITHIN_S
        if deadline is not None and time.monotonic() > deadline and not _is_saving(config.folder):
            raise TimeoutError(f"the roles did not stop within {STOP_WITHIN_S:.0f} s and were ended")


class ControllerWatch:
    """Ends the controller's process when it is stopped or hangs; Ray starts another one, which takes over."""

    def __init__(self, actor: Any, answer_s: float):
        self._actor = actor
        self._answer_s = answer_s
        self._beat: Beat | None = None
        self._asked_at = 0.0
        self._asked: Any = None

    def look(self) -> None:
        """To be called several times a second."""
        import ray

        now = time.monotonic()
        if self._asked is None:
            self._asked, self._asked_at = self._actor.beat.remote(), now
        elif ray.wait([self._asked], timeout=0)[0]:
            self._beat, self._asked = ray.get(self._asked), None
        elif self._beat is not None and (silent_s := now - self._asked_at) > SUSPECT_AFTER_S:
            examine(self._beat, silent_s > self._answer_s)


def _is_saving(folder: Path) -> bool:
    """A checkpoint is being written."""
    try:
        changed = [path.stat().st_mtime for path in (folder / "checkpoints").glob(".step-*.tmp/*")]
    except FileNotFoundError:  # it was renamed just now
        return True
    return bool(changed) and time.time() - max(changed) < SAVES_WITHIN_S


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


if __name__ == "__main__":
    sys.exit(main())
