"""The Ray cluster of a run: started on this machine or joined, quiet, and closed to strangers.

A cluster that a run starts listens on the loopback interface, asks for a token, and has its sockets and logs in a
folder that only this user can enter. The token and the address lie in files of the run's folder that only its owner can
read; whoever can read them can attach. Who else can do what: SECURITY.md.
"""

from __future__ import annotations

import json
import logging
import os
import secrets
import shutil
import socket
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil

from accerl.config import ClusterConfig, ConfigError
from accerl.files import write_file
from accerl.private import read_secret

NAMESPACE = "accerl"
CLOSED = {
    "AUTOSCALER_METRIC_PORT": "-1",  # no port: metrics of Ray that nobody asks for, to whoever asks
    "GLOO_SOCKET_IFNAME": "lo",
    "NCCL_SOCKET_IFNAME": "lo",
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # there Ray listens on the loopback interface; so it does here
}
"""Environment of every process of a cluster that is one machine."""
STARTS = 3
"""Attempts: Ray gives up a node whose processes do not come up in time, as on a machine that is busy."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Connection:
    """What it takes to reach a run: the content of its connection file."""

    address: str
    controller: str
    """Name of the controller actor in the namespace `accerl`."""
    token_path: str | None
    """File with Ray's token; None: the cluster was there before and has its own rules."""
    host: str
    host_pid: int
    """Of the process that ends the run when it is asked to."""

    def save(self, folder: Path) -> None:
        write_file(folder / "connection.json", json.dumps(asdict(self)), mode=0o600)

    @classmethod
    def load(cls, folder: Path) -> Connection | None:
        """None while, or after, the run has none.

        Raises:
            ConfigError: others could have read or written it; or it leads to another machine, which takes no calls.
        """
        try:
            connection = cls(**json.loads(read_secret(folder / "connection.json")))
        except FileNotFoundError:
            return None
        except PermissionError as error:
            raise ConfigError(f"run: {error}") from None
        except (ValueError, TypeError, RecursionError) as error:
            path = folder / "connection.json"
            raise ConfigError(f"run: {path} is damaged ({error}); end the run's processes and resume it") from None
        if connection.token_path is not None and connection.host != socket.gethostname():
            raise ConfigError(
                f"run: {folder} is at work on {connection.host}, which takes calls from its own processes only; go on "
                f"there, or start runs with cluster.address"
            )
        return connection


def start(config: ClusterConfig, folder: Path, private: Path) -> tuple[str, str | None]:
    """Start or join the cluster; returns its address and the file with the token that a started one asks for.

    Args:
        folder: of the run.
        private: a folder that only this user can enter.

    Raises:
        ConfigError: there is no cluster at `cluster.address`.
    """
    token_path = None
    if config.address is None:
        token_path = folder / "ray.token"
        write_file(token_path, secrets.token_hex(32), mode=0o600)
    set_environment(None if token_path is None else str(token_path.resolve()))
    import ray

    local: dict[str, Any] = {
        "num_cpus": os.cpu_count(),
        "include_dashboard": False,
        "object_store_memory": config.object_store_mb * 2**20,
        "_node_ip_address": "127.0.0.1",
        "_temp_dir": str(private / "ray"),  # a folder within, because Ray opens its own to everybody
    }
    quiet: dict[str, Any] = {"namespace": NAMESPACE, "log_to_driver": False, "logging_level": logging.ERROR}
    try:
        if config.address is None:
            _start_patiently(lambda: ray.init(address="local", **quiet, **local))
        else:
            ray.init(address=config.address, **quiet)
    except ConnectionError as error:
        reason = str(error).split("\n")[0]
        raise ConfigError(
            f"cluster.address: no Ray cluster answers at {config.address} ({reason}); start one with `ray start --head`"
        ) from None
    return ray.get_runtime_context().gcs_address, None if token_path is None else str(token_path.resolve())


def keep_logs(private: Path, folder: Path) -> None:
    """Copy what Ray and the roles have printed into the run's folder; nothing if the cluster was not started here."""
    logs = private / "ray" / "session_latest" / "logs"
    if logs.exists():
        shutil.copytree(logs, folder / "logs" / "ray", dirs_exist_ok=True)


def _start_patiently(start_node: Callable[[], Any]) -> None:
    for attempt in range(1, STARTS + 1):
        before = set(psutil.Process().children(recursive=True))
        try:
            start_node()
            return
        except Exception as error:  # Ray has no other kind for it
            if "timed out during startup" not in str(error) or attempt == STARTS:
                raise
        for left in set(psutil.Process().children(recursive=True)) - before:
            with suppress(psutil.NoSuchProcess):
                left.kill()


def join(connection: Connection) -> None:
    """Make this process a driver of the run's cluster.

    Raises:
        ConnectionError: the cluster is not there any more.
    """
    set_environment(connection.token_path)
    import ray

    ray.init(
        address=connection.address,
        namespace=NAMESPACE,
        log_to_driver=False,
        logging_level=logging.CRITICAL,
    )


def set_environment(token_path: str | None) -> None:
    """Set what Ray and the processes it starts read from the environment; call before Ray is imported.

    Args:
        token_path: file with the token of a cluster that a run has started; None: of any other.
    """
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ["RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"] = "0"
    os.environ["RAY_BACKEND_LOG_LEVEL"] = "fatal"
    os.environ["RAY_DEDUP_LOGS"] = "0"
    os.environ["RAY_task_events_report_interval_ms"] = "0"  # noqa: SIM112 - or the head keeps 400 MB about calls
    os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112 - a role takes Ray's own when it is at work
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("LP_NUM_THREADS", "0")
    if token_path is not None:
        os.environ.update(CLOSED)
        os.environ.pop("RAY_AUTH_TOKEN", None)  # of another cluster; it would be shown instead
        os.environ["RAY_AUTH_MODE"] = "token"
        os.environ["RAY_AUTH_TOKEN_PATH"] = token_path
