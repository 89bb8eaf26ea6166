"""The Ray cluster of a run: started on this machine or joined, quiet, and closed to strangers.

Ray's ports listen on every interface, so every cluster that a run starts asks for a token. The token and the address
lie in files of the run's folder that only its owner can read; whoever can read them can attach.
"""

from __future__ import annotations

import json
import logging
import os
import secrets
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil

from accerl.config import ClusterConfig, ConfigError
from accerl.files import write_file

NAMESPACE = "accerl"
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
        """None while, or after, the run has none."""
        try:
            return cls(**json.loads((folder / "connection.json").read_text()))
        except FileNotFoundError:
            return None


def start(config: ClusterConfig, folder: Path) -> tuple[str, str | None]:
    """Start or join the cluster; returns its address and the file with the token that a started one asks for.

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
    """Set what Ray and the processes it starts read from the environment; call before Ray is imported."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ["RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"] = "0"
    os.environ["RAY_BACKEND_LOG_LEVEL"] = "fatal"
    os.environ["RAY_DEDUP_LOGS"] = "0"
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("LP_NUM_THREADS", "0")
    if token_path is not None:
        os.environ["RAY_AUTH_MODE"] = "token"
        os.environ["RAY_AUTH_TOKEN_PATH"] = token_path
