"""Whether the nodes of a Ray cluster can carry a run: `accerl doctor --cluster`.

Each node is visited by a small actor (`node_probe`); `cluster_findings` says what the answers mean.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import time
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from accerl.doctor import Finding
from accerl.runtime import cluster, cluster_findings, node_probe
from accerl.runtime.knock import knock

ANSWER_WITHIN_S = 60.0
"""For a node to start a process and import what it is asked about."""
CONNECT_WITHIN_S = 3.0
JOIN_WITHIN_S = 120.0
NUM_READINGS = 20
"""Of a clock; the one with the shortest way there and back counts."""


def examine_cluster(address: str, root: Path, num_nodes: int | None = None) -> list[Finding]:
    """Join the cluster, ask every node, and leave.

    Args:
        address: of the head, `host:port`.
        root: folder of the runs.
        num_nodes: that there should be; they are waited for.

    Raises:
        ConfigError: that is no address.
        ConnectionError: no cluster is there, or it does not let this machine in.
    """
    _set_environment()
    asks_for_token = knock(address)
    _join(address)
    import ray

    try:
        with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):  # Ray prints logs of dying nodes
            counted = [] if num_nodes is None else [_wait_for_nodes(num_nodes)]
            return [_token(asks_for_token, address), *counted, *_examine(root.resolve())]
    finally:
        ray.shutdown()


def _set_environment() -> None:
    cluster.set_environment(None)
    os.environ.pop("RAY_BACKEND_LOG_LEVEL", None)  # Ray would say on stderr that it has read it
    os.environ.setdefault("RAY_gcs_server_request_timeout_seconds", "10")  # for it to find a node on this machine


def _join(address: str) -> None:
    import ray

    try:
        ray.init(address=address, namespace=cluster.NAMESPACE, log_to_driver=False, logging_level=logging.CRITICAL)
    except (ConnectionError, RuntimeError) as error:
        reason = " ".join(str(error.__cause__ or error).split())
        raise ConnectionError(
            f"cannot join the cluster at {address} ({reason}); this machine must be one of its nodes: "
            f"`ray start --address {address}`"
        ) from None


class Visitors:
    """A probe on each node, by label. A node that does not answer is noted and left out from then on.

    Args:
        nodes: as `ray.nodes` gives them.
    """

    def __init__(self, nodes: Mapping[str, Mapping[str, Any]]):
        import ray
        from ray import cloudpickle
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        cloudpickle.register_pickle_by_value(node_probe)
        probe: Any = ray.remote(node_probe.NodeProbe)
        self.lost: list[Finding] = []
        self._probes = {
            label: probe.options(
                num_cpus=0, scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            ).remote(node["NodeManagerAddress"])
            for label, node in nodes.items()
        }

    def ask(self, call: Callable[[str, Any], Any]) -> dict[str, Any]:
        """The answers of all nodes to a call, which gets the label and the probe; they work at the same time."""
        calls = {label: call(label, probe) for label, probe in self._probes.items()}
        deadline = time.monotonic() + ANSWER_WITHIN_S
        return {label: answer for label, each in calls.items() for answer in self._get(label, each, deadline)}

    def compare_clocks(self) -> dict[str, tuple[float, float]]:
        """Seconds that each node's clock is ahead of this one, and half the time of the way there and back."""
        labels = list(self._probes)
        readings = {label: [r for _ in range(NUM_READINGS) for r in self._read_clock(label)] for label in labels}
        return {label: min(each, key=lambda reading: reading[1]) for label, each in readings.items() if each}

    def _read_clock(self, label: str) -> list[tuple[float, float]]:
        if label not in self._probes:
            return []
        before, start = time.time(), time.perf_counter()
        answer = self._get(label, self._probes[label].clock.remote(), time.monotonic() + CONNECT_WITHIN_S)
        half = (time.perf_counter() - start) / 2
        return [(clock - before - half, half) for clock in answer]

    def _get(self, label: str, call: Any, deadline: float) -> list[Any]:
        """The answer; empty if there is none."""
        import ray
        from ray.exceptions import RayError

        try:
            return [ray.get(call, timeout=max(0.0, deadline - time.monotonic()))]
        except RayError as error:
            self._lose(label, error)
            return []

    def _lose(self, label: str, error: Exception) -> None:
        del self._probes[label]
        reason = (str(error).strip().splitlines() or [type(error).__name__])[-1]
        remedy = "open the ports of its Ray both ways; what it says is in /tmp/ray/session_latest/logs/raylet.out there"
        finding = Finding(subject=label, ok=False, detail=f"does not answer ({reason})", remedy=remedy)
        self.lost.append(finding)


def _wait_for_nodes(wanted: int) -> Finding:
    deadline = time.monotonic() + JOIN_WITHIN_S
    while (there := len(_living())) < wanted and time.monotonic() < deadline:
        time.sleep(1.0)
    if there >= wanted:
        return Finding(subject="nodes", ok=True, detail=f"{there} have joined, {wanted} were wanted")
    detail = f"{there} of {wanted} have joined after {JOIN_WITHIN_S:.0f} s"
    return Finding(subject="nodes", ok=False, detail=detail, remedy="see what `ray start --address` said on the others")


def _examine(root: Path) -> list[Finding]:
    nodes = _label(_living())
    visitors = Visitors(nodes)
    doors = visitors.ask(lambda _, probe: probe.door.remote())
    offsets = visitors.compare_clocks()
    facts = visitors.ask(lambda _, probe: probe.facts.remote())
    reached = visitors.ask(lambda label, probe: probe.reach.remote(_others(doors, label), CONNECT_WITHIN_S))
    word, found = _look_for_root(visitors, root)
    return [
        *visitors.lost,
        *cluster_findings.versions(node_probe.facts(), facts),
        *cluster_findings.clocks(offsets),
        *cluster_findings.ways(reached, {label: each["ports"] for label, each in facts.items()}),
        *(
            finding
            for label, each in facts.items()
            for finding in cluster_findings.hardware(label, each, nodes[label]["Resources"])
        ),
        *cluster_findings.gpu_software(facts),
        *cluster_findings.root(root, word, found),
    ]


def _living() -> list[dict[str, Any]]:
    import ray

    return [node for node in ray.nodes() if node["Alive"]]


def _label(nodes: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Nodes by address; with a part of their number where several share one."""
    num = Counter(node["NodeManagerAddress"] for node in nodes)
    return {
        address if num[address] == 1 else f"{address}/{node['NodeID'][:4]}": node
        for node in sorted(nodes, key=lambda node: node["NodeManagerAddress"])
        for address in [node["NodeManagerAddress"]]
    }


def _others(doors: Mapping[str, Any], label: str) -> dict[str, Any]:
    return {other: door for other, door in doors.items() if other != label}


def _look_for_root(visitors: Visitors, root: Path) -> tuple[str, dict[str, Any]]:
    """A word that was written into the folder, and what each node finds of it."""
    word = secrets.token_hex(8)
    is_new = not root.exists()
    root.mkdir(parents=True, exist_ok=True)
    path = root / f".doctor-{word}"
    path.write_text(word)
    try:
        return word, visitors.ask(lambda _, probe: probe.look_for.remote(str(path)))
    finally:
        path.unlink()
        if is_new:
            root.rmdir()


def _token(asks_for_one: bool, address: str) -> Finding:
    if asks_for_one:
        return Finding(subject="token", ok=True, detail=f"{address} asks for one, and lets this machine in")
    remedy = (
        "who can reach its port can run programs on every node: start every `ray start` with RAY_AUTH_MODE=token and "
        "RAY_AUTH_TOKEN_PATH=FILE, or close its ports to strangers"
    )
    return Finding(subject="token", ok=None, detail=f"{address} asks for none", remedy=remedy)
