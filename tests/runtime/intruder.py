"""A second user of the machine, who tries everything on a run that is somebody else's.

    python -m tests.runtime.intruder    reads what it is told to attack from stdin, prints what it got

It imports what it needs as the user who starts it, and then gives that user's rights up for good. What it gets hold of
is a line under `taken`, what was refused is counted under `refused`: a test looks at both, so that an attack that never
reached its target does not count as repelled.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import psutil
import zmq

from accerl.config import ConfigError
from accerl.runtime.run import attach, runs
from accerl.runtime.wire import decode_answers, encode_requests
from accerl.types import DecisionRequest

NOBODY = 65534
ANSWER_WITHIN_S = 1.0
CALLS = (
    "NodeInfoGcsService/GetClusterId",
    "NodeInfoGcsService/GetAllNodeInfo",
    "InternalKVGcsService/InternalKVKeys",
    "ActorInfoGcsService/GetAllActorInfo",
    "JobInfoGcsService/AddJob",
    "NodeManagerService/RequestWorkerLease",
    "NodeManagerService/GetNodeStats",
    "ObjectManagerService/Pull",
    "ObjectManagerService/Push",
    "CoreWorkerService/PushTask",
    "CoreWorkerService/GetObjectStatus",
    "CoreWorkerService/GetCoreWorkerStats",
)
"""Of Ray: who the nodes are, what they keep, running something, reading an object."""
GARBAGE = (
    b"\x00" * 512,
    os.urandom(4096),
    b"GET / HTTP/1.1\r\nHost: run\r\n\r\n",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\xff" * 64,
    b"\xff\x00\x00\x00\x00\x00\x00\x00\x01\x7f\x03\x00NULL" + b"\x00" * 49 + b"\x02" + b"\x7f" + b"\xff" * 7,
)
"""The last one is a greeting of ZeroMQ and a frame that announces eight exbibytes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """What the intruder can know of the run from `ps` and `ls`."""

    root: Path
    """Where runs and their temporary folders are; everybody can list it."""
    name: str
    processes: list[int]
    ports: list[int]
    """On which they listen: of the open ports that a scan finds, those of others are left in peace."""


@dataclass(slots=True)
class Loot:
    """What came of the attempts, each in a few words."""

    taken: list[str] = field(default_factory=list)
    refused: dict[str, int] = field(default_factory=dict)
    """Number of attempts of each kind that came to nothing."""
    found: list[int] = field(default_factory=list)
    """The run's ports, by scanning."""
    guarded: list[int] = field(default_factory=list)
    """Ports where a call was recognised, and refused for want of the token."""
    seen: list[str] = field(default_factory=list)
    """What everybody may see: command lines."""

    def refuse(self, kind: str) -> None:
        self.refused[kind] = self.refused.get(kind, 0) + 1

    def guard(self, kind: str, port: int) -> None:
        self.refuse(kind)
        if port not in self.guarded:
            self.guarded.append(port)

    def attempt(self, kind: str, what: object, action: Callable[[], object]) -> None:
        """Count an attempt that the system is to forbid."""
        try:
            action()
        except PermissionError:
            self.refuse(kind)
        else:
            self.taken.append(f"{kind}: {what}")


def main() -> None:
    facts = json.loads(sys.stdin.read())
    target = Target(**{**facts, "root": Path(facts["root"])})
    socket.getaddrinfo("localhost", 1)  # what is loaded when it is first used, is loaded now
    b"".decode("idna")
    os.setgroups([])
    os.setgid(NOBODY)
    os.setuid(NOBODY)
    loot = Loot()
    for attack in (attack_files, attack_processes, attack_handle, attack_unix_sockets, attack_ports):
        attack(target, loot)
    print(json.dumps(asdict(loot)))


def attack_files(target: Target, loot: Loot) -> None:
    """The run's folder, its temporary folder, shared memory: read, list, write."""
    folder = target.root / target.name
    loot.attempt("folder", folder, lambda: os.listdir(folder))
    loot.attempt("write", folder, lambda: (folder / "config.json").write_text("{}"))
    for name in ("ray.token", "connection.json", "config.json", "start/policy.safetensors", "metrics.jsonl"):
        loot.attempt("file", name, (folder / name).read_bytes)
    for path in Path("/dev/shm").glob(f"accerl-{target.name}-*"):
        loot.attempt("shared memory", path, path.read_bytes)
    for path in target.root.glob("accerl-*"):
        loot.attempt("private folder", path, lambda path=path: os.listdir(path))
        loot.attempt("write", path, lambda path=path: (path / "x").write_text(""))


def attack_processes(target: Target, loot: Loot) -> None:
    """Environment, memory and open files of the run's processes; and a signal."""
    for pid in target.processes:
        proc = Path("/proc") / str(pid)
        with contextlib.suppress(FileNotFoundError):
            loot.seen.append((proc / "cmdline").read_text())
            for name in ("environ", "mem", "maps"):
                loot.attempt("process", proc / name, (proc / name).read_bytes)
            loot.attempt("process", proc / "fd", lambda proc=proc: os.listdir(proc / "fd"))
            loot.attempt("signal", pid, lambda pid=pid: os.kill(pid, signal.SIGCONT))


def attack_handle(target: Target, loot: Loot) -> None:
    """What the library itself offers."""
    if runs(target.root):
        loot.taken.append("handle: the run is listed")
    for run in (target.name, target.root / target.name):
        try:
            attach(run, target.root).pause()
        except ConfigError:
            loot.refuse("handle")
        else:
            loot.taken.append(f"handle: {run}")


def attack_unix_sockets(target: Target, loot: Loot) -> None:
    """Sockets of Ray and of the request path, whose names the kernel tells everybody."""
    for line in Path("/proc/net/unix").read_text().splitlines():
        path = line.split()[-1]
        if path.startswith(f"{target.root}/"):
            with socket.socket(socket.AF_UNIX) as client:
                loot.attempt("unix socket", path, lambda client=client, path=path: client.connect(path))


def attack_ports(target: Target, loot: Loot) -> None:
    """Every port there can be, from here; those of the run by the machine's other addresses too, and in earnest."""
    loot.found = sorted({port for port in range(1, 2**16) if is_open(port)} & set(target.ports))
    for port in loot.found:
        for address in outside():
            with socket.socket(address[0]) as client:
                client.settimeout(ANSWER_WITHIN_S)
                try:
                    client.connect((address[1], port))
                except OSError:
                    loot.refuse("outside")
                else:
                    loot.taken.append(f"outside: {address[1]} port {port}")
        for bytes_ in GARBAGE:
            throw(port, bytes_, loot)
        call_grpc(port, loot)
        call_http(port, loot)
        ask_zmq(port, loot)


def is_open(port: int) -> bool:
    with socket.socket() as client:
        client.settimeout(ANSWER_WITHIN_S)
        is_connected = client.connect_ex(("127.0.0.1", port)) == 0
        return is_connected and client.getsockname() != client.getpeername()  # itself, by chance


def outside() -> Iterator[tuple[socket.AddressFamily, str]]:
    """Addresses of this machine that others reach."""
    for addresses in psutil.net_if_addrs().values():
        for each in addresses:
            if each.family == socket.AF_INET and not each.address.startswith("127."):
                yield socket.AF_INET, each.address
            elif each.family == socket.AF_INET6 and each.address != "::1" and "%" not in each.address:
                yield socket.AF_INET6, each.address


def throw(port: int, content: bytes, loot: Loot) -> None:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), ANSWER_WITHIN_S) as client:
        loot.refuse("garbage")
        client.sendall(content)
        client.settimeout(0.05)
        client.recv(4096)


def call_grpc(port: int, loot: Loot) -> None:
    """Ray's calls, without a token and with a wrong one."""
    for token in (None, "0" * 64):
        metadata = (("authorization", f"Bearer {token}"),) if token is not None else None
        with grpc.insecure_channel(f"127.0.0.1:{port}", options=[("grpc.enable_http_proxy", 0)]) as channel:
            for call in CALLS:
                try:
                    channel.unary_unary(f"/ray.rpc.{call}")(b"", timeout=ANSWER_WITHIN_S, metadata=metadata)
                except grpc.RpcError as error:
                    refusal: Any = error
                    if refusal.code() == grpc.StatusCode.UNAUTHENTICATED:
                        loot.guard(f"grpc {call.partition('/')[0]}", port)
                    elif refusal.code() == grpc.StatusCode.UNAVAILABLE:
                        break  # no gRPC here
                    elif refusal.code() != grpc.StatusCode.UNIMPLEMENTED:
                        loot.taken.append(f"grpc: {call} on port {port}: {refusal.code()} {refusal.details()}")
                else:
                    loot.taken.append(f"grpc: {call} on port {port}")


def call_http(port: int, loot: Loot) -> None:
    """Ray's agents."""
    for method, path in (("POST", "/get_or_create_runtime_env"), ("GET", "/metrics"), ("GET", "/api/version")):
        client = http.client.HTTPConnection("127.0.0.1", port, timeout=ANSWER_WITHIN_S)
        try:
            client.request(method, path, body=b"" if method == "POST" else None)
            status = client.getresponse().status
        except (OSError, http.client.HTTPException):
            continue  # no HTTP here
        finally:
            client.close()
        if status in (401, 403):
            loot.guard("http", port)
        elif status not in (400, 404, 415):
            loot.taken.append(f"http: {method} {path} on port {port}: {status}")


def ask_zmq(port: int, loot: Loot) -> None:
    """For an action, as a worker would."""
    observation: Any = {
        "images": np.zeros((1, 32, 32, 3), np.uint8),
        "proprio": np.zeros(4, np.float32),
        "instruction": "red",
    }
    request = DecisionRequest(observation=observation, episode_step=0, seed=0)
    client = zmq.Context.instance().socket(zmq.DEALER)
    client.linger = 0
    client.connect(f"tcp://127.0.0.1:{port}")
    client.send_multipart(encode_requests([0], [request], client="rollout-0", slots=None))
    try:
        if client.poll(100):
            loot.taken.append(f"zmq: port {port}: {decode_answers(client.recv_multipart())}")
    except ValueError:
        pass  # a server of another protocol complains, and that looks like a message
    else:
        loot.refuse("zmq")
    client.close()


if __name__ == "__main__":
    main()
