"""The way from a handle to the controller: a side process that is a driver of the run's cluster.

When a cluster disappears Ray ends its drivers; so that this is never a notebook's kernel, the kernel talks through a
pipe to a process of its own, which costs a millisecond a call.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Sequence
from multiprocessing.connection import Connection as Pipe
from pathlib import Path
from typing import Any

from accerl.config import ConfigError
from accerl.runtime.cluster import Connection

ANSWER_WITHIN_S = 60.0

KINDS = {"ConfigError": "refused", "NotSaved": "not saved"}
"""What an error of the controller is for the caller; others: failed."""


class Bridge:
    """Calls methods of a run's controller, and of `Watch`. Starts the side process, which takes some seconds once.

    Raises:
        ConfigError: the connection file does not let this process in.
    """

    def __init__(self, folder: Path):
        Connection.load(folder)
        mine, theirs = _pipe()
        self._pipe = mine
        self._lock = threading.Lock()
        self._log = folder / "logs" / "bridge.log"
        self._process = spawn("accerl.runtime.bridge", [str(folder), str(theirs)], self._log, pass_fds=[theirs])
        os.close(theirs)

    def call(self, method: str, *arguments: Any) -> Any:
        """The controller's answer.

        Raises:
            ConfigError: the controller refused the arguments.
            ConnectionError: the run is not there any more.
            NotSaved: the disk did not take the checkpoint.
        """
        with self._lock:
            try:
                self._pipe.send((method, arguments))
                kind, content = self._pipe.recv()
            except (EOFError, OSError) as error:
                raise ConnectionError(f"the run's cluster is not there any more; see {self._log}") from error
        if kind == "refused":
            raise ConfigError(content)
        if kind == "not saved":
            from accerl.checkpoint_writer import NotSaved

            raise NotSaved(content)
        if kind == "failed":
            raise ConnectionError(content)
        return content

    def close(self) -> None:
        """End the side process."""
        self._pipe.close()
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def spawn(module: str, arguments: Sequence[str], log: Path, pass_fds: Sequence[int] = ()) -> subprocess.Popen[bytes]:
    """`python -m module` in a session of its own, which goes on when this process ends; it prints into `log`."""
    with log.open("a") as file:
        return subprocess.Popen(
            [sys.executable, "-m", module, *arguments],
            pass_fds=pass_fds,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            start_new_session=True,
            env=child_environment(),
        )


def child_environment() -> dict[str, str]:
    """For a Python process that finds every module that this one finds."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)}


def serve(folder: Path, pipe: Pipe) -> None:
    """Answer calls until the other end of the pipe is closed."""
    controller = _find_controller(folder)
    import ray
    from ray.exceptions import RayError, RayTaskError

    from accerl.runtime.watch import Watch

    watch = Watch(controller)
    while True:
        try:
            method, arguments = pipe.recv()
        except EOFError:
            return
        try:
            if method == "watch":
                answer = "done", watch.watch(*arguments)
            else:
                answer = "done", ray.get(getattr(controller, method).remote(*arguments), timeout=ANSWER_WITHIN_S)
        except RayTaskError as error:
            answer = KINDS.get(type(error.cause).__name__, "failed"), str(error.cause)
        except RayError as error:
            answer = "failed", str(error).split("\n")[0]
        pipe.send(answer)


def _find_controller(folder: Path) -> Any:
    import time

    from accerl.runtime import cluster

    deadline = time.monotonic() + ANSWER_WITHIN_S
    while (connection := cluster.Connection.load(folder)) is None:
        if time.monotonic() > deadline:
            raise ConnectionError(f"{folder} has no connection file; the run has not started or has ended")
        time.sleep(0.1)
    cluster.join(connection)
    import ray

    return ray.get_actor(connection.controller, namespace=cluster.NAMESPACE)


def _pipe() -> tuple[Pipe, int]:
    """One end as a connection, the other as a descriptor for a child."""
    import socket

    mine, theirs = socket.socketpair()
    return Pipe(mine.detach()), theirs.detach()


if __name__ == "__main__":
    serve(Path(sys.argv[1]), Pipe(int(sys.argv[2])))
