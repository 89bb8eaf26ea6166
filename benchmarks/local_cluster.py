"""Several Ray nodes on this machine, in a process of their own, which asks for a token.

    with LocalCluster(tmp_path) as cluster: cluster.address, cluster.add(), cluster.remove(node), cluster.actors()

The process ends with the one that started it, and every Ray process with it.
"""

from __future__ import annotations

import json
import logging
import os
import secrets
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

STORE_MB = 100
NOTICES_A_DEATH = {
    "RAY_worker_niceness": "0",
    "RAY_health_check_initial_delay_ms": "1000",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "3000",
    "RAY_health_check_failure_threshold": "3",
}
"""Sooner than Ray would by itself."""
REPOSITORY = Path(__file__).parents[1]


class LocalCluster:
    """The handle. `environment` is what a process needs to join.

    Args:
        folder: for the token.
    """

    def __init__(self, folder: Path):
        token = folder / "token"
        token.write_text(secrets.token_hex(32))
        token.chmod(0o600)
        self.environment = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token)}
        with (folder / "cluster.log").open("w") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "benchmarks.local_cluster"],
                cwd=REPOSITORY,
                env={**os.environ, **NOTICES_A_DEATH, **self.environment, "PYTHONPATH": str(REPOSITORY)},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        self.address: str
        self.head: str
        self.address, self.head = self._answer()

    def add(self, environment: Mapping[str, str] | None = None) -> str:
        """One more node, whose processes have `environment` beside this one's; returns its number."""
        return self._ask("add", dict(environment or {}))

    def remove(self, node: str) -> None:
        """Kill every process of the node."""
        self._ask("remove", node)

    def actors(self) -> dict[str, tuple[str, int]]:
        """Node and process of the named actors that live."""
        return {name: (node, process) for name, (node, process) in self._ask("actors").items()}

    def endpoints(self, run: str) -> dict[str, dict[str, str]]:
        """Of the run's services, as its controller gives them to the workers."""
        return self._ask("endpoints", run)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate()

    def _ask(self, verb: str, *arguments: Any) -> Any:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps([verb, *arguments]) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, "the cluster's process has ended"
        return json.loads(line)


class _Nodes:
    """What the process does when it is asked."""

    def __init__(self) -> None:
        from ray.cluster_utils import Cluster

        self._cluster = Cluster()
        self._added: dict[str, Any] = {}
        self.head = self.add({})

    @property
    def address(self) -> str:
        return str(self._cluster.address)

    def add(self, environment: dict[str, str]) -> str:
        before = dict(os.environ)
        os.environ.update(environment)
        node = self._cluster.add_node(
            num_cpus=2, object_store_memory=STORE_MB * 2**20, include_dashboard=False, num_gpus=0
        )
        os.environ.clear()
        os.environ.update(before)
        self._added[node.node_id] = node
        return node.node_id

    def remove(self, number: str) -> None:
        self._cluster.remove_node(self._added.pop(number), allow_graceful=False)

    def actors(self) -> dict[str, tuple[str, int]]:
        self._ray()
        from ray._private.state import actors

        living = [actor for actor in actors().values() if actor["State"] == "ALIVE" and actor["Name"]]
        return {actor["Name"]: (actor["Address"]["NodeID"], actor["Pid"]) for actor in living}

    def endpoints(self, run: str) -> dict[str, dict[str, str]]:
        from dataclasses import asdict

        ray = self._ray()
        controller = ray.get_actor(f"{run}/controller")
        _, directory = ray.get(controller.directory.remote(-1, 1.0), timeout=10)
        return {name: asdict(endpoint) for name, endpoint in directory.services.items()}

    def shutdown(self) -> None:
        self._ray().shutdown()
        self._cluster.shutdown()

    def _ray(self) -> Any:
        import ray

        if not ray.is_initialized():
            ray.init(address=self.address, namespace="accerl", log_to_driver=False, logging_level=logging.CRITICAL)
        return ray


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what Ray prints is no answer
    nodes = _Nodes()
    try:
        print(json.dumps([nodes.address, nodes.head]), file=answers, flush=True)
        for line in sys.stdin:
            verb, *arguments = json.loads(line)
            print(json.dumps(getattr(nodes, verb)(*arguments)), file=answers, flush=True)
    finally:
        nodes.shutdown()


if __name__ == "__main__":
    main()
